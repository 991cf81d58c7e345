"""L2 towards the beginning: plain LoRA whose movement from the base weights is held, all alike (docs/methods/controls.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Trainer

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods.method import Method
from alora_trainer.trainer.mixin import ALoRATrainer
from alora_trainer.trainer.part import Part
from alora_trainer.weights.adapted import AdaptedWeight, adapted_weights
from alora_trainer.weights.trained_weight import TrainedWeight

SPACES = ("weights", "factors")


@dataclass(frozen=True)
class L2InitOptions:
    """Of `l2_init`.

    Attributes:
        strength: lambda, what the squared distance is multiplied by.
        space: whose distance: that of the weights, ``s B A`` from ``s B0 A0``, or that of the factors themselves.

    Raises:
        ALoRAError: the strength is negative, or the space unknown.
    """

    strength: float = 0.01
    space: str = "weights"

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ALoRAError(f"strength={self.strength!r} must not be negative")
        if self.space not in SPACES:
            raise ALoRAError(f"space={self.space!r} is unknown: use one of {', '.join(SPACES)}")


class TowardsTheBeginning(Part):
    """Adds ``lambda * sum_l ||theta_l - theta0_l||**2`` to the loss of an optimizer step, theta0 as the training began.

    Args:
        options: how strong, and of what.
    """

    def __init__(self, options: L2InitOptions) -> None:
        self._options = options
        self._beginnings: list[tuple[AdaptedWeight, torch.Tensor, torch.Tensor]] = []

    def before_training(self, trainer: Trainer, weights: Sequence[TrainedWeight], *, resumes: bool) -> None:
        # The model is as it was made, whether or not a checkpoint is loaded next: both begin with the same seed.
        self._beginnings = [
            (weight, weight.a.detach().clone(), weight.b.detach().clone())
            for weight in adapted_weights(trainer.accelerator.unwrap_model(trainer.model))
        ]

    def loss_term(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        terms = [self._distance(*beginning) for beginning in self._beginnings]
        return (self._options.strength * torch.stack([term.to(device) for term in terms]).sum()).to(dtype)

    def _distance(self, weight: AdaptedWeight, a0: torch.Tensor, b0: torch.Tensor) -> torch.Tensor:
        a, b = weight.of_a(weight.parameter_a).float(), weight.of_b(weight.parameter_b).float()
        a0, b0 = a0.to(a.device).float(), b0.to(b.device).float()
        if self._options.space == "factors":
            return (a - a0).square().sum() + (b - b0).square().sum()
        return weight.scaling**2 * squared_movement(a, b, a0, b0)


def squared_movement(a: torch.Tensor, b: torch.Tensor, a0: torch.Tensor, b0: torch.Tensor) -> torch.Tensor:
    """``||B A - B0 A0||_F ** 2`` without the matrices: the trace of the product of two Gram matrices of size 2r.

    Args:
        a, a0: (r, n).
        b, b0: (m, r).
    """
    left, right = torch.cat([b, -b0], dim=1), torch.cat([a, a0], dim=0)
    return ((left.T @ left) * (right @ right.T)).sum()


@dataclass(frozen=True)
class L2Init(Method):
    """Trains a plain adapter with `TowardsTheBeginning`."""

    options_class = L2InitOptions
    is_plain = False
    one_process = True

    def make_trainer(self, *, options: L2InitOptions, general: Any = None, **kwargs: Any) -> Any:
        return ALoRATrainer(**kwargs, parts=[TowardsTheBeginning(options)])


L2_INIT = L2Init("l2_init", "LoRA on the domain, held to where it began by plain L2", starts_from="fresh")
