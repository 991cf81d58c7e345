"""Whether an importance map was made for a model: names, shapes and base weights, before the first step."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.base_model import check_base, named_base
from alora_trainer.importance.importance_values import ImportanceValues
from alora_trainer.weights.adapted import base_name
from alora_trainer.weights.model_weights import trained_weights
from alora_trainer.weights.parameterization import Parameterization
from alora_trainer.weights.start import StartFrom
from alora_trainer.weights.trained_weight import TrainedWeight


def match_model(
    importance: ImportanceValues,
    model: torch.nn.Module,
    *,
    start: StartFrom | None = None,
    missing: str = "error",
    parameterization: Parameterization = Parameterization.ADAPTER,
    allow_other_revision: bool = False,
) -> Sequence[TrainedWeight]:
    """The trained weights of `model`, after checking that `importance` was made for it; see `ImportanceMap.check_model`."""
    if importance.at_base and start is StartFrom.MERGED:
        raise ALoRAError(
            "the importance map was measured at the base weights, so that it has no adapter to merge: say start='bare'"
        )
    weights = trained_weights(model, parameterization)
    _check_parameterization(importance, parameterization)
    known = {weight.name: weight for weight in weights}
    recorded = {name: weight for name, weight in known.items() if name in importance}
    _check_names(importance, model, [name for name in known if name not in recorded], missing)
    if importance.at_base:
        _check_layouts(model, recorded)
    for name, weight in recorded.items():
        if importance.stored(name).shape != weight.shape:
            raise ALoRAError(
                f"the importance map is for another model{named_base(importance)}: {name} is {weight.shape} here and "
                f"{importance.stored(name).shape} in the map"
            )
    merged = start is StartFrom.MERGED
    check_base(model, importance, recorded, merged=merged, allow_other_revision=allow_other_revision)
    return weights


def _check_parameterization(importance: ImportanceValues, parameterization: Parameterization) -> None:
    recorded = importance.parameterization
    if importance.theta and not importance.theta.holds(parameterization):
        raise ALoRAError(
            f"the importance map was recorded for {recorded.words} (full_parameters={recorded.full_parameters}): set "
            f"full_parameters={recorded.full_parameters}, or record another map"
        )


def _check_layouts(model: torch.nn.Module, weights: Mapping[str, TrainedWeight]) -> None:
    """A map for adapters is of outputs by inputs; weights that are tuned themselves are as the model stores them."""
    modules = {base_name(name): module for name, module in model.named_modules()}
    for name, weight in weights.items():
        if weight.parameterization is Parameterization.FULL and not isinstance(modules.get(name), torch.nn.Linear):
            kind = type(modules[name]).__name__ if name in modules else "parameter of its own"
            raise ALoRAError(
                f"{name} is a {kind}, and of whole weights the importance map holds linear layers alone, stored as "
                "outputs by inputs: adapt it with LoRA, or leave it out of the map (ImportanceMap.select)"
            )


def _check_names(importance: ImportanceValues, model: torch.nn.Module, missing: Sequence[str], policy: str) -> None:
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
            f"the importance map is for another model{named_base(importance)}: this one has no {_some(foreign)}"
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
