"""The weights of a whole model that a training moves, and where they stand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from peft import get_peft_model_state_dict

from alora_trainer.weights.adapted import AdaptedWeight, adapted_weights
from alora_trainer.weights.full_weight import full_weights
from alora_trainer.weights.parameterization import Parameterization
from alora_trainer.weights.reference import PEFT_PREFIX
from alora_trainer.weights.theta import AdapterTheta, FullTheta, Theta
from alora_trainer.weights.trained_weight import TrainedWeight, unwrapped, whole

_FOUND_BY: Mapping[Parameterization, Callable[[torch.nn.Module], Sequence[TrainedWeight]]] = {
    Parameterization.ADAPTER: adapted_weights,
    Parameterization.FULL: full_weights,
}


def trained_weights(model: torch.nn.Module, parameterization: Parameterization) -> Sequence[TrainedWeight]:
    """What a training of `model` moves and we can hold: the weights that a LoRA adapter moves, or the model's own.

    Raises:
        ALoRAError: there are none, or some of them cannot be held.
    """
    return _FOUND_BY[parameterization](model)


def adapter_of(weights: Sequence[TrainedWeight]) -> str | None:
    """The name of the adapter that moves the weights; None where they are tuned themselves."""
    return weights[0].adapter if isinstance(weights[0], AdaptedWeight) else None


def present_theta(model: Any, weights: Sequence[TrainedWeight]) -> Theta:
    """The weights as they are now, as a theta* in host memory. All processes must call it together.

    Args:
        model: with an adapter, PEFT's model: its adapter goes into theta* whole.
        weights: of `model`, all of one parameterization.
    """
    references: dict[str, Any] = {weight.name: weight.reference() for weight in weights}
    adapter = adapter_of(weights)
    if adapter is None:
        return FullTheta(references)
    return AdapterTheta(references, _adapter_state(model, adapter), model.peft_config[adapter])


def _adapter_state(model: Any, adapter: str) -> dict[str, torch.Tensor]:
    """The adapter as PEFT saves it, by the names of a model that nothing is wrapped around."""
    found = get_peft_model_state_dict(model, _state_by_modules(model), adapter, save_embedding_layers=False)
    return {
        PEFT_PREFIX + unwrapped(key).removeprefix(PEFT_PREFIX): whole(tensor.detach()).cpu().clone()
        for key, tensor in found.items()
    }


def _state_by_modules(model: Any) -> dict[str, torch.Tensor] | None:
    """A model's state under names that begin with its modules' own; None where they all do.

    PEFT finds an adapter's tensors by the names of its layers, and what wraps a layer (activation checkpointing) is in these
    and not in the state's: it would find none.
    """
    paths = {unwrapped(name): name for name, _ in model.named_modules()}
    if all(name == path for name, path in paths.items()):
        return None
    state = {}
    for key, tensor in model.state_dict().items():
        module, tail = unwrapped(key), ""
        while module not in paths:
            module, _, last = module.rpartition(".")
            tail = f".{last}{tail}"
        state[f"{paths[module]}{tail}".removeprefix(".")] = tensor
    return state
