"""The model card of an importance map, and the per-layer table beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from alora_trainer.artefact.cards.basis import CURVATURE_DESCRIPTIONS, BasisFacts, basis_facts, labels_text
from alora_trainer.artefact.cards.evaluation import CardScores, evaluation_entries, forgotten_text
from alora_trainer.artefact.cards.facts import (
    Licences,
    as_markdown,
    as_python,
    data_text,
    dataset_ids,
    duration_text,
    loadable_name,
    public_name,
)
from alora_trainer.artefact.entries import MapConfig
from alora_trainer.artefact.files import HEATMAP_FILE
from alora_trainer.artefact.theta_files import THETA_FILES
from alora_trainer.basics.hub_ids import is_hub_id
from alora_trainer.basics.sizes import size_text
from alora_trainer.importance.importance_values import ImportanceValues
from alora_trainer.importance.origin import ImportanceInfo
from alora_trainer.importance.recording.estimators import ESTIMATORS
from alora_trainer.importance.recording.fisher import FISHER_DESCRIPTIONS
from alora_trainer.weights.theta import BaseTheta

TEMPLATE = Path(__file__).parent / "map_card.md"
# By these tags a map is found. None of them can be taken for PEFT's "Activated LoRA".
MAP_TAG = "importance-map"
# What stands in the card for the map while it has no repository of its own.
UNPUBLISHED = "FOLDER_OR_HUB_ID"


@dataclass(frozen=True)
class MapCard:
    """The facts of a map's card, as the template names them."""

    source: str
    base: str
    base_source: str
    base_revision: str | None
    estimator: str
    how: str
    xi: float | None
    xi_share: float | None
    along: str | None
    steps: int
    tokens: int
    optimizer: str | None
    learning_rate: float | None
    seed: int | None
    data: str
    earlier_tasks: int
    weights: int
    kinds: str
    kind: str
    targets: tuple[str, ...]
    elements: int
    formats: Mapping[str, str]
    first_format: str
    cost: str
    licences: str
    versions: str
    parameterization: str
    at_base: bool
    basis: BasisFacts | None
    picture: str | None
    measured: str | None
    metadata: Mapping[str, Any] = field(repr=False)
    evaluation: tuple[Any, ...] = ()


def map_tags(config: MapConfig) -> tuple[str, ...]:
    """The tags of a map's card: that it is one, the kind of importance, and what was trained."""
    return (MAP_TAG, f"{config.kind}-importance", *THETA_FILES[config.theta.type].tags, "forgetting")


def estimator_text(info: ImportanceInfo) -> str:
    """How importance was estimated, as a part of a sentence."""
    name = info.estimator or "unknown"
    if name in ESTIMATORS:
        return ESTIMATORS[name].description
    known = {**FISHER_DESCRIPTIONS, **CURVATURE_DESCRIPTIONS}
    if name not in known:
        return f"the estimator `{name}` of alora-trainer"
    return known[name] + (labels_text(info.labels, info.draws) if name in CURVATURE_DESCRIPTIONS else "")


def layer_table(importance: ImportanceValues) -> dict[str, dict[str, float | None]]:
    """``||Omega_l||_2``, its natural logarithm (None for zero) and the mean, by weight name."""
    return {
        name: {
            "norm": norm,
            "log_norm": math.log(norm) if norm > 0 else None,
            "mean": importance.total([name]) / math.prod(importance.stored(name).shape),
        }
        for name, norm in importance.layer_norms.items()
    }


def map_card(
    config: MapConfig,
    *,
    picture: bool,
    repo_id: str | None = None,
    licences: Licences | None = None,
    results: CardScores | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> MapCard:
    """The facts of a map's card.

    Args:
        config: of the map.
        picture: whether the heat map is there.
        repo_id: the repository that the map is published in.
        licences: of base and data, where the Hub was asked.
        results: what was measured at theta*, with the base model's beside it.
        metadata: further metadata, over what the map itself gives.
    """
    info = config.info
    licences = licences or Licences(stated=info.license)
    estimator = info.estimator or "unknown"
    modules = tuple(dict.fromkeys(name.rpartition(".")[2] for name in config.weights))
    stated = {**_metadata(config, licences), **(metadata or {})}
    formats = {storage: size_text(config.format_bytes(storage)) for storage in config.formats}
    return MapCard(
        source=repo_id or UNPUBLISHED,
        base=public_name(info.base_model),
        base_source=loadable_name(info.base_model),
        base_revision=info.base_revision,
        estimator=estimator,
        how=estimator_text(info),
        xi=info.xi,
        xi_share=info.xi_share,
        along=info.basis,
        steps=info.steps,
        tokens=info.tokens,
        optimizer=info.optimizer,
        learning_rate=info.learning_rate,
        seed=info.seed,
        data=data_text(info.data),
        earlier_tasks=len(info.earlier_tasks),
        weights=len(config.weights),
        kinds=", ".join(modules),
        kind=config.kind,
        targets=modules,
        elements=_elements(config),
        formats=formats,
        first_format=config.storage,
        cost=_cost_text(info.cost),
        licences=licences.text,
        versions=", ".join(f"{name} {version}" for name, version in info.versions.items()) or "not recorded",
        parameterization=config.parameterization.value,
        at_base=config.theta.type is BaseTheta,
        basis=basis_facts(config),
        picture=HEATMAP_FILE if picture else None,
        measured=forgotten_text(results) if results else None,
        metadata={key: value for key, value in stated.items() if value is not None},
        evaluation=tuple(evaluation_entries(results)) if results else (),
    )


def _metadata(config: MapConfig, licences: Licences) -> dict[str, Any]:
    """What the Hub is to know of a map; None for what is not known."""
    info, theta_files = config.info, THETA_FILES[config.theta.type]
    return {
        "library_name": theta_files.library,
        "license": licences.for_metadata,
        "base_model": info.base_model if is_hub_id(info.base_model) else None,
        "base_model_relation": theta_files.relation if is_hub_id(info.base_model) else None,
        "datasets": dataset_ids(info.data) or None,
        "tags": list(map_tags(config)),
        "importance_map": {
            "kind": config.kind,
            "estimator": info.estimator or "unknown",
            "tokens": info.tokens,
            "weights": len(config.weights),
            "elements": _elements(config),
            "formats": {storage: config.format_bytes(storage) for storage in config.formats},
        },
    }


def _elements(config: MapConfig) -> int:
    return sum(math.prod(weight.shape) for weight in config.weights.values())


def _cost_text(cost: Mapping[str, Any]) -> str:
    parts = []
    seconds, peak_bytes = cost.get("seconds"), cost.get("peak_bytes")
    if isinstance(seconds, (int, float)):
        parts.append(duration_text(seconds))
    if isinstance(peak_bytes, (int, float)):
        parts.append(f"at most {size_text(peak_bytes)} of memory")
    if "device" in cost:
        parts.append(f"on {cost['device']}")
    return ", ".join(parts) or "not measured"


def render(card: Any, template: Path, model_name: str) -> str:
    """The text of a card: metadata for the Hub, then the template with the card's facts in it.

    A fact is text in the template, whatever a stranger wrote for it, and a literal of Python as `code.` and its name.
    """
    metadata: dict[str, Any] = dict(card.metadata)
    if card.evaluation:
        metadata |= {"eval_results": list(card.evaluation), "model_name": model_name}
    data = ModelCardData(**metadata)
    given = {key: value for key, value in asdict(card).items() if key not in ("metadata", "evaluation")}
    facts = {key: as_markdown(value) if isinstance(value, str) else value for key, value in given.items()}
    facts["code"] = {key: as_python(value) for key, value in given.items() if isinstance(value, str)}
    return str(ModelCard.from_template(data, template_path=str(template), **facts)).rstrip("\n") + "\n"


def write_map_card(config: MapConfig, path: Path, *, picture: bool, **settings: Any) -> None:
    """Write a map's card; `settings` as in `map_card`."""
    card = map_card(config, picture=picture, **settings)
    path.write_text(render(card, TEMPLATE, card.source.rpartition("/")[2]), encoding="utf-8")
