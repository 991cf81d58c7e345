"""The model card of an importance map, and the per-layer table beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alora_trainer.artefact.cards.evaluation import CardScores, evaluation_entries, forgotten_text
from alora_trainer.artefact.cards.facts import (
    Licences,
    data_text,
    dataset_ids,
    duration_text,
    is_hub_id,
    loadable_name,
    public_name,
    size_text,
)
from alora_trainer.artefact.config_file import MapConfig
from alora_trainer.artefact.files import HEATMAP_FILE

if TYPE_CHECKING:
    from alora_trainer.importance.importance_values import ImportanceValues

TEMPLATE = Path(__file__).parent / "map_card.md"
# By these tags a map is found. None of them can be taken for PEFT's "Activated LoRA".
MAP_TAG = "importance-map"
TAGS = (MAP_TAG, "elementwise-importance", "lora", "forgetting")
# What stands in the card for the map while it has no repository of its own.
UNPUBLISHED = "FOLDER_OR_HUB_ID"

_ESTIMATORS = {
    "path": "the path integral of Synaptic Intelligence along the movement that the optimizer really made (eq. 13-15)",
    "paper": "the path integral of Synaptic Intelligence as the paper writes it, learning rate times gradient (eq. 13-15)",
    "projected": "the path integral of Synaptic Intelligence along the optimizer's movement, with an estimate of the weights' "
    "true gradient from those of the adapter's factors (eq. 15)",
    "fisher": "the diagonal of the empirical Fisher information: squared gradients of the base weights, sample by sample",
    "fisher_batch": "squared gradients of the base weights over whole batches, as EWCLoRA was published",
    "exact": "the path integral of Synaptic Intelligence with the true gradient of the weights (eq. 15)",
}


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
    steps: int
    tokens: int
    optimizer: str | None
    learning_rate: float | None
    seed: int | None
    data: str
    earlier_tasks: int
    weights: int
    kinds: str
    elements: int
    formats: Mapping[str, str]
    first_format: str
    cost: str
    licences: str
    versions: str
    full: bool
    picture: str | None
    measured: str | None
    metadata: Mapping[str, Any] = field(repr=False)
    evaluation: tuple[Any, ...] = ()


def map_tags(config: MapConfig) -> tuple[str, ...]:
    """The tags of a map's card; without LoRA where the weights themselves were tuned."""
    return tuple(tag for tag in TAGS if not (tag == "lora" and config.is_full))


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
    elements = sum(math.prod(weight.shape) for weight in config.weights.values())
    formats = {storage: size_text(config.format_bytes(storage)) for storage in config.formats}
    facts = {
        "library_name": None if config.is_full else "peft",
        "license": licences.for_metadata,
        "base_model": info.base_model if is_hub_id(info.base_model) else None,
        "base_model_relation": "adapter" if is_hub_id(info.base_model) and not config.is_full else None,
        "datasets": dataset_ids(info.data) or None,
        "tags": list(map_tags(config)),
        "importance_map": {
            "estimator": estimator,
            "tokens": info.tokens,
            "weights": len(config.weights),
            "elements": elements,
            "formats": {storage: config.format_bytes(storage) for storage in config.formats},
        },
    }
    return MapCard(
        source=repo_id or UNPUBLISHED,
        base=public_name(info.base_model),
        base_source=loadable_name(info.base_model),
        base_revision=info.base_revision,
        estimator=estimator,
        how=_ESTIMATORS.get(estimator, f"the estimator `{estimator}` of alora-trainer"),
        xi=info.xi,
        steps=info.steps,
        tokens=info.tokens,
        optimizer=info.optimizer,
        learning_rate=info.learning_rate,
        seed=info.seed,
        data=data_text(info.data),
        earlier_tasks=len(info.earlier_tasks),
        weights=len(config.weights),
        kinds=", ".join(f"`{kind}`" for kind in dict.fromkeys(name.rpartition(".")[2] for name in config.weights)),
        elements=elements,
        formats=formats,
        first_format=config.storage,
        cost=_cost_text(info.cost),
        licences=licences.text,
        versions=", ".join(f"{name} {version}" for name, version in info.versions.items()) or "not recorded",
        full=config.is_full,
        picture=HEATMAP_FILE if picture else None,
        measured=forgotten_text(results) if results else None,
        metadata={key: value for key, value in {**facts, **(metadata or {})}.items() if value is not None},
        evaluation=tuple(evaluation_entries(results)) if results else (),
    )


def _cost_text(cost: Mapping[str, Any]) -> str:
    parts = []
    if "seconds" in cost:
        parts.append(duration_text(float(cost["seconds"])))
    if "peak_bytes" in cost:
        parts.append(f"at most {size_text(float(cost['peak_bytes']))} of memory")
    if "device" in cost:
        parts.append(f"on {cost['device']}")
    return ", ".join(parts) or "not measured"


def render(card: Any, template: Path, model_name: str) -> str:
    """The text of a card: metadata for the Hub, then the template with the card's facts in it."""
    from huggingface_hub import ModelCard, ModelCardData

    metadata: dict[str, Any] = dict(card.metadata)
    if card.evaluation:
        metadata |= {"eval_results": list(card.evaluation), "model_name": model_name}
    data = ModelCardData(**metadata)
    facts = {key: value for key, value in asdict(card).items() if key not in ("metadata", "evaluation")}
    return str(ModelCard.from_template(data, template_path=str(template), **facts)).rstrip("\n") + "\n"


def write_map_card(config: MapConfig, path: Path, *, picture: bool, **settings: Any) -> None:
    """Write a map's card; `settings` as in `map_card`."""
    card = map_card(config, picture=picture, **settings)
    path.write_text(render(card, TEMPLATE, card.source.rpartition("/")[2]), encoding="utf-8")
