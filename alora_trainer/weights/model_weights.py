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
from alora_trainer.weights.trained_weight import TrainedWeight, whole

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
    """The adapter as PEFT saves it."""
    state = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    return {
        key if key.startswith(PEFT_PREFIX) else PEFT_PREFIX + key: whole(tensor.detach()).cpu().clone()
        for key, tensor in state.items()
    }
