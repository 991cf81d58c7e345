"""The model card of an adapter that was tuned while an importance map held what was important."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alora_trainer.artefact.cards.evaluation import CardScores, evaluation_entries, forgotten_text
from alora_trainer.artefact.cards.facts import Licences, data_text, dataset_ids, git_name, loadable_name, public_name
from alora_trainer.artefact.cards.held import Holding, holding
from alora_trainer.artefact.cards.map_card import render
from alora_trainer.artefact.cards.tuning import PROMISES, Tuning, prompt_of
from alora_trainer.basics.hub_ids import is_hub_id

TEMPLATE = Path(__file__).parent / "adapter_card.md"
# Of a training's facts, how general loss rose: as the map predicted it, as a probe measured it, and the ratio of both.
RISES = ("predicted_rise", "measured_rise", "calibration")
# And with those what the card has in places of their own.
_APART = (*RISES, "times", PROMISES)
# What the card's example asks where it is not known how the adapter was asked in its training.
_ANY_PROMPT = "Question:"
_COLUMN = re.compile(r"\{\w+\}")


@dataclass(frozen=True)
class AdapterCard:
    """The facts of an adapter's card, as the template names them."""

    source: str
    base: str
    base_source: str
    base_revision: str | None
    map_id: str | None
    map_commit: str | None
    map_estimator: str
    map_data: str
    lam: float | str
    over_merged: bool
    protection: str
    data: str
    held: Holding
    prompt: str
    prompt_known: bool
    chat: bool
    training: str
    rise: str | None
    times: str | None
    promises: str | None
    forgotten: str | None
    licences: str
    versions: str
    metadata: Mapping[str, Any] = field(repr=False)
    evaluation: tuple[Any, ...] = ()


def adapter_card(
    tuning: Tuning,
    *,
    repo_id: str | None = None,
    licences: Licences | None = None,
    results: CardScores | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> AdapterCard:
    """The facts of an adapter's card; arguments as in `map_card.map_card`."""
    licences = licences or Licences()
    on_hub = is_hub_id(tuning.base_model)
    held, prompt = holding(tuning), prompt_of(tuning.data) or ""
    known = bool(_COLUMN.sub("", prompt).strip())  # a column alone is any text
    shown = prompt if known else _ANY_PROMPT
    facts = {
        "library_name": "peft",
        "license": licences.for_metadata,
        "base_model": tuning.base_model if on_hub else None,
        "base_model_relation": "adapter" if on_hub else None,
        "datasets": dataset_ids(tuning.data) or None,
        "tags": list(held.tags),
        "pipeline_tag": "text-generation",
        "widget": [{"text": shown}],
    }
    return AdapterCard(
        source=repo_id or "FOLDER_OR_HUB_ID",
        base=public_name(tuning.base_model),
        base_source=loadable_name(tuning.base_model),
        base_revision=tuning.base_revision,
        map_id=map_id if isinstance(map_id := tuning.map.get("repo_id"), str) and is_hub_id(map_id) else None,
        map_commit=git_name(tuning.map.get("commit")),
        map_estimator=str(tuning.map.get("estimator")),
        map_data=data_text(data if isinstance(data := tuning.map.get("data"), Mapping) else {}),
        lam=_strength(tuning.protection.get("lam")),
        over_merged=tuning.over_merged,
        protection=_settings_text(_of_effect(tuning.protection)),
        data=data_text(tuning.data),
        held=held,
        prompt=shown,
        prompt_known=known,
        chat=tuning.data.get("chat_template") is True,
        training=_settings_text({key: value for key, value in tuning.training.items() if key not in _APART}),
        rise=_rise_text(tuning.training),
        times=f"{times:g}" if (times := _number(tuning.training.get("times"))) is not None else None,
        promises=said if isinstance(said := tuning.training.get(PROMISES), str) else None,
        forgotten=forgotten_text(results) if results else None,
        licences=licences.text,
        versions=", ".join(f"{name} {version}" for name, version in tuning.versions.items()) or "not recorded",
        metadata={key: value for key, value in {**facts, **(metadata or {})}.items() if value is not None},
        evaluation=tuple(evaluation_entries(results)) if results else (),
    )


# Settings of the penalty that say something beside another one alone: (what, beside which, unless that is).
_BESIDE = (
    (("lam_end_factor",), "lam_schedule", "constant"),
    (("init_items", "init_damping", "init_memory"), "init_adapter", "default"),
    (("init_adapter",), "init_adapter", "default"),
    (("probe_steps",), "budget", None),
)
# Of no effect on the adapter: where things were kept, and what was refused or logged.
_ASIDE = ("lam", "storage_device", "missing", "log_drift")


def _of_effect(protection: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the penalty that made the adapter what it is; lambda has a line of its own."""
    idle = {
        name for names, beside, unless in _BESIDE for name in names if protection.get(beside, unless) in (unless, None)
    }
    return {key: value for key, value in protection.items() if key not in (*_ASIDE, *idle)}


def _settings_text(settings: Mapping[str, Any]) -> str:
    """Settings in words, without those that were left alone."""
    kept = {key: value for key, value in settings.items() if value is not None and value is not False}  # 0 is a value
    return (
        ", ".join(f"{key} {'yes' if value is True else value}" for key, value in kept.items()) or "nothing that was set"
    )


def _number(value: Any) -> float | None:
    """A number of ordinary size; None for whatever else a file may have in its place."""
    return float(value) if isinstance(value, (int, float)) and abs(value) < 1e300 else None


def _rise_text(training: Mapping[str, Any]) -> str | None:
    """How general loss rose during the training, in words; None where the map predicted nothing."""
    predicted, measured, factor = (_number(training.get(name)) for name in RISES)
    if predicted is None:
        return None
    text = (
        f"the map predicted a rise of {predicted:.4g} nats a token at its end, counted from where the penalty pulls to"
    )
    if measured is None:
        return f"{text}; none was measured"
    text = f"{text}; on a probe it was {measured:.4g}"
    return (
        text if factor is None else f"{text}, and {factor:.3g} times what was predicted where this was measured clearly"
    )


def _strength(lam: Any) -> float | str:
    """Lambda as the training was told: a number, or "auto"."""
    number = _number(lam)
    return str(lam) if number is None else number


def write_adapter_card(tuning: Tuning, path: Path, **settings: Any) -> None:
    """Write an adapter's card; `settings` as in `adapter_card`."""
    card = adapter_card(tuning, **settings)
    path.write_text(render(card, TEMPLATE, card.source.rpartition("/")[2]), encoding="utf-8")
