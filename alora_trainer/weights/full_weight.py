"""Full tuning: the model's own parameters as trained weights, as Synaptic Intelligence and EWC were published.

A parameter of two dimensions or more is a matrix (first dimension, all others); a vector (a bias, a norm's gain) is one row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from alora_trainer.errors import ALoRAError
from alora_trainer.weights.adapter_kinds import adapter_configs
from alora_trainer.weights.parameterization import Parameterization
from alora_trainer.weights.reference import FullReference
from alora_trainer.weights.steps import FullStep
from alora_trainer.weights.trained_weight import Matrices, TrainedWeight, View, unwrapped


@dataclass(frozen=True, eq=False)
class FullWeight(TrainedWeight):
    """A parameter of the model itself.

    Attributes:
        name: the module's name for its ``weight``, as in a LoRA map; the parameter's own name for anything else.
        parameter: it.
    """

    name: str
    parameter: nn.Parameter

    parameterization: ClassVar[Parameterization] = Parameterization.FULL

    @property
    def parameters(self) -> tuple[nn.Parameter]:
        return (self.parameter,)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) in the layout that the model stores."""
        shape = self.parameter.shape
        return (1, shape[0]) if len(shape) == 1 else (shape[0], math.prod(shape[1:]))

    @property
    def views(self) -> tuple[View]:
        return (lambda tensor: tensor.reshape(self.shape),)

    def step(self, before: Matrices, gradients: Matrices, after: Matrices, learning_rate: float) -> FullStep:
        return FullStep(before[0], gradients[0], after[0], learning_rate)

    def movement(self, before: Matrices, after: Matrices) -> torch.Tensor:
        return after[0] - before[0]

    def reference(self) -> FullReference:
        return FullReference(self.matrices[0].cpu().clone())

    def base_sample(self) -> None:
        """None: all of the weight moves, so nothing of it identifies the base model."""
        return None


def full_weights(model: nn.Module) -> list[FullWeight]:
    """All trainable parameters of a model that is tuned without adapters; tied ones once.

    Raises:
        ALoRAError: the model has an adapter, or nothing in it trains, or a trainable parameter is quantised.
    """
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            raise ALoRAError(
                f"full_parameters=True tunes the model's own weights, and {name} has a PEFT adapter: "
                "leave full_parameters out, or pass the model without the adapter"
            )
    for config in adapter_configs(model):  # of prompt tuning and the like, which have no layers of their own
        raise ALoRAError(
            f"full_parameters=True tunes the model's own weights, and it has a PEFT adapter ({type(config).__name__}): "
            "leave full_parameters out, or pass the model without the adapter"
        )
    weights = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if not parameter.is_floating_point() or hasattr(parameter, "quant_state"):
            raise ALoRAError(f"{name} is quantised and cannot be tuned itself: adapt it with LoRA")
        weights.append(FullWeight(unwrapped(name).removesuffix(".weight"), parameter))
    if not weights:
        raise ALoRAError("nothing in the model trains: set requires_grad on what full_parameters=True is to tune")
    return weights
