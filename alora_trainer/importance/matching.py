"""Whether an importance map was made for a model: names, shapes and base weights, before the first step."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from alora_trainer.adapted import AdaptedWeight, adapted_weights, base_name
from alora_trainer.errors import ALoRAError
from alora_trainer.full import full_weights
from alora_trainer.importance.map import ImportanceMap
from alora_trainer.importance.reference import FullReference
from alora_trainer.weights import TrainedWeight

# A base weight may be off by bf16 rounding (0.4 %) between two copies of one model, not by more.
_BASE_TOLERANCE = 0.02


def match_model(
    importance: ImportanceMap,
    model: torch.nn.Module,
    *,
    start: str = "continue",
    fresh_base: str = "merged",
    missing: str = "error",
    full_parameters: bool = False,
) -> Sequence[TrainedWeight]:
    """The adapted weights of `model`, after checking that `importance` was made for it; see `ImportanceMap.check_model`."""
    weights = trained_weights(model, full_parameters)
    _check_kind(importance, full_parameters)
    known = {weight.name: weight for weight in weights}
    recorded = {name: weight for name, weight in known.items() if name in importance}
    _check_names(importance, model, [name for name in known if name not in recorded], start, missing)
    for name, weight in recorded.items():
        if importance.stored(name).shape != weight.shape:
            raise ALoRAError(
                f"the importance map is for another model{_origin(importance)}: {name} is {weight.shape} here and "
                f"{importance.stored(name).shape} in the map"
            )
    merged = start == "fresh" and fresh_base == "merged"
    _check_base(importance, {n: w for n, w in recorded.items() if isinstance(w, AdaptedWeight)}, merged)
    return weights


def trained_weights(model: torch.nn.Module, full_parameters: bool) -> Sequence[TrainedWeight]:
    """What a training of `model` moves and we can hold: its own weights, or those that a LoRA adapter moves.

    Raises:
        ALoRAError: there are none, or some of them cannot be held.
    """
    return full_weights(model) if full_parameters else adapted_weights(model)


def _check_kind(importance: ImportanceMap, full_parameters: bool) -> None:
    full = any(isinstance(reference, FullReference) for reference in importance.reference.values())
    if full != full_parameters and importance.reference:
        kind = "whole weights (full_parameters=True)" if full else "a LoRA adapter (full_parameters=False)"
        raise ALoRAError(
            f"the importance map was recorded for {kind}: set full_parameters={full}, or record another map"
        )


def _check_names(
    importance: ImportanceMap, model: torch.nn.Module, missing: Sequence[str], start: str, policy: str
) -> None:
    if missing and policy == "error":
        raise ALoRAError(
            f"the importance map has no importance of {_some(missing)}, which the adapter moves: adapt only what was recorded "
            f"({_some(list(importance))}), record a map for these weights, or say missing='uniform' or 'free'"
        )
    present = {base_name(name) for name, _ in model.named_modules()} | {
        base_name(n) for n, _ in model.named_parameters()
    }
    foreign = [name for name in importance if name not in present and re.sub(r"\.\d+$", "", name) not in present]
    if foreign:
        raise ALoRAError(
            f"the importance map is for another model{_origin(importance)}: this one has no {_some(foreign)}"
        )


def _check_base(importance: ImportanceMap, weights: dict[str, AdaptedWeight], merged: bool) -> None:
    """Compare a few base weights with the recorded ones, to which the recorded adapter was added if `merged`."""
    squares = {"as recorded": 0.0, "with the recorded adapter in it": 0.0}
    for name, weight in weights.items():
        here, bare = weight.base_sample(), importance.base_samples.get(name)
        if not here or not bare:
            continue
        reference = importance.reference[name]
        added = weight.sample_of(reference.a, reference.b, reference.scaling)
        if len(added) != len(bare):
            raise ALoRAError(f"the sample of base weights of {name} is damaged in the importance map: record it again")
        expected = [x + y for x, y in zip(bare, added, strict=True)] if merged else bare
        if not _close(here, expected):
            raise ALoRAError(
                f"the importance map was recorded on other base weights{_origin(importance)}: those of {name} differ; "
                + (
                    "merge the map's own adapter into the base that the map names, or say fresh_base='bare'"
                    if merged
                    else "load the base model that the map names, or record a map for this one"
                )
            )
        for kind, values in zip(squares, (bare, [x + y for x, y in zip(bare, added, strict=True)]), strict=True):
            squares[kind] += sum((x - y) ** 2 for x, y in zip(here, values, strict=True))
    # The adapter may have moved the weights by less than the tolerance of a single one: all of them together tell.
    bare_off, merged_off = squares.values()
    said, other = (merged_off, bare_off) if merged else (bare_off, merged_off)
    if other < said / 4:
        found, wanted = reversed(list(squares)) if not merged else squares
        raise ALoRAError(
            f"the base weights are {found}, and should be {wanted}: "
            + ("merge the map's adapter first, or say fresh_base='bare'" if merged else "load the base model as it was")
        )


def _origin(importance: ImportanceMap) -> str:
    return f" ({importance.info.base_model})" if importance.info.base_model else ""


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _close(here: list[float], expected: list[float]) -> bool:
    if len(here) != len(expected):
        return False
    scale = max(max(map(abs, expected)), max(map(abs, here)))
    return all(abs(x - y) <= _BASE_TOLERANCE * scale for x, y in zip(here, expected, strict=True))
