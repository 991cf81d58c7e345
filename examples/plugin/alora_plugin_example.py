"""A plugin of alora-trainer: one estimator, one storage format, one penalty backend and one method, a few lines each.

After ``pip install examples/plugin`` (beside alora-trainer) a recipe may say

    methods: [base, alora, decayed]
    alora: {record: squared_movement, backend: whole_matrix}
    map: {storage: linear8}
    method_options: {decayed: {strength: 1.0e-3}}

and `alora plan`, the cards and the report know these names, as they know the package's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Trainer

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods import METHODS, Method
from alora_trainer.importance.kinds.elementwise import Elementwise
from alora_trainer.importance.kinds.formats import FORMATS
from alora_trainer.importance.kinds.kind import Importance, PartType
from alora_trainer.importance.recording.estimators import ESTIMATORS, Estimator, StepFactors
from alora_trainer.penalty.backends.backend import Backend, PenaltyResult, needs_elements
from alora_trainer.penalty.backends.choice import BACKENDS
from alora_trainer.trainer import ALoRATrainer
from alora_trainer.trainer.part import Part
from alora_trainer.weights.steps import Factors, Step
from alora_trainer.weights.trained_weight import TrainedWeight

# ---- an estimator: what is added to the path integral w in each optimizer step ----


def squared_movement(step: Step) -> StepFactors:
    """``w += D**2``: a weight matters as much as it was moved, whatever its gradient."""
    movement = step.movement()
    if isinstance(movement, torch.Tensor):
        return StepFactors(-movement, movement)
    return StepFactors(Factors(-movement.left, movement.right), movement)


ESTIMATORS.register(
    "squared_movement", Estimator(squared_movement, "the squares of the optimizer's movements, summed over its steps")
)

# ---- a storage format: which tensors one weight's importance is kept as ----


class LinearOmega(Elementwise):
    """One byte an element and four bytes a row: ``Omega_ij = scale_i * code_ij``."""

    format = "linear8"

    @classmethod
    def encode(cls, omega: torch.Tensor) -> LinearOmega:
        rows, columns = omega.shape
        scales = omega.float().amax(1) / 255
        codes = (omega.float() / scales.clamp_min(1e-38)[:, None]).round().clamp(0, 255).to(torch.uint8)
        return cls((rows, columns), {"codes": codes, "scales": scales})

    @classmethod
    def part_types(cls, shape: tuple[int, int]) -> dict[str, PartType]:
        return {"codes": (torch.uint8, shape), "scales": (torch.float32, (shape[0],))}

    def check_parts(self, name: str) -> None:
        scales = self.parts["scales"]
        if not bool(torch.isfinite(scales).all() and (scales >= 0).all()):
            raise ALoRAError(f"the importance of {name} has scales that are negative or not finite: fetch it again")

    def rows(self, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        return self.parts["codes"][rows].to(dtype) * self.parts["scales"][rows].to(dtype)[:, None]


FORMATS.register(LinearOmega.format, LinearOmega)

# ---- a backend: how one weight's penalty and its gradients are computed ----


def whole_matrix_penalty(
    importance: Importance, drift: Factors, a: torch.Tensor, b: torch.Tensor, scaling: float
) -> PenaltyResult:
    """``R = <D, M D>`` for any kind of importance, with D and M D written out: simple, and large."""
    movement = drift.left @ drift.right
    weighted = importance.to(a.device).apply(movement)
    value = (movement.double() * weighted.double()).sum()
    return PenaltyResult(value, 2 * scaling * (b.T @ weighted), 2 * scaling * (weighted @ a.T))


WHOLE_MATRIX = Backend("whole_matrix", whole_matrix_penalty, misfit=needs_elements)
BACKENDS.register(WHOLE_MATRIX.name, WHOLE_MATRIX)

# ---- a method with a loss of its own ----


@dataclass(frozen=True)
class DecayedOptions:
    """Of `decayed`: what the sum of the adapter's squares is multiplied by."""

    strength: float = 1e-3


class Decay(Part):
    """Adds ``strength * ||A, B||**2`` to the loss of every optimizer step."""

    def __init__(self, strength: float) -> None:
        self._strength = strength
        self._parameters: list[torch.nn.Parameter] = []

    def begin(self, trainer: Trainer, weights: Sequence[TrainedWeight], *, resumes: bool) -> None:
        assert trainer.model is not None
        self._parameters = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]

    def loss_term(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        squares = torch.stack([parameter.square().sum() for parameter in self._parameters])
        return (self._strength * squares.sum()).to(device, dtype)


@dataclass(frozen=True)
class Decayed(Method):
    """LoRA whose factors are pulled towards zero by its loss."""

    options_class = DecayedOptions
    is_plain = False

    def make_trainer(self, *, options: DecayedOptions, general: Any = None, **kwargs: Any) -> Any:
        return ALoRATrainer(**kwargs, parts=[Decay(options.strength)])


METHODS.register("decayed", Decayed("decayed", "LoRA with its factors' squares in the loss", starts_from="fresh"))
