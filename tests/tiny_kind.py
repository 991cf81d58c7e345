"""A kind of importance, a format, an estimator and a backend as somebody else's package would add them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from alora_trainer.basics.registry import Registry
from alora_trainer.errors import ALoRAError
from alora_trainer.importance.kinds.elementwise import Elementwise, matrix_shape
from alora_trainer.importance.kinds.formats import FORMATS, KINDS
from alora_trainer.importance.kinds.kind import Importance, Kind, Measure, PartType
from alora_trainer.importance.recording.estimators import ESTIMATORS, Estimator, StepFactors
from alora_trainer.penalty.backends.backend import Backend, PenaltyResult
from alora_trainer.penalty.backends.blocked import blocked_penalty
from alora_trainer.penalty.backends.choice import BACKENDS
from alora_trainer.weights.parameterization import Parameterization
from alora_trainer.weights.steps import Factors, Step


class InputCovariance(Importance):
    """``<D, M D> = tr(D S D')`` with S (n, n) the second moments of the layer's input: ``M = I kron S``."""

    kind = "input_moments"
    format = "covariance32"

    @classmethod
    def part_types(cls, shape: tuple[int, int]) -> dict[str, PartType]:
        return {"": (torch.float32, (shape[1], shape[1]))}

    @property
    def moments(self) -> torch.Tensor:
        return self.parts[""]

    def check_parts(self, name: str) -> None:
        if not torch.equal(self.moments, self.moments.T):
            raise ALoRAError(f"the covariance of {name} is not symmetric: record it again")

    def measure(self) -> Measure:
        s, m = self.moments.double(), self.shape[0]
        if not bool(torch.isfinite(s).all()):
            return Measure(float("nan"), float("nan"), float("nan"))
        values = torch.linalg.eigvalsh(s)
        least = float(values[0]) if values[0] < -1e-6 * values[-1] else 0.0
        return Measure(m * float(s.trace()), m**0.5 * float(s.norm()), least)

    def diagonal(self) -> torch.Tensor:
        return self.moments.diagonal().expand(self.shape).clone()

    def apply(self, movement: torch.Tensor) -> torch.Tensor:
        return movement @ self.moments.to(movement.dtype)

    def add(self, earlier: Importance) -> InputCovariance:
        return InputCovariance(self.shape, {"": self.moments + earlier.parts[""].to(self.moments)})


def uniform_covariance(shape: tuple[int, int], value: float) -> InputCovariance:
    return InputCovariance(shape, {"": value * torch.eye(shape[1])})


def covariance_penalty(
    importance: Importance, drift: Factors, a: torch.Tensor, b: torch.Tensor, scaling: float
) -> PenaltyResult:
    """From thin factors alone: never (m, n)."""
    weighted = drift.right @ importance.to(a.device).parts[""].to(a.dtype)
    value = ((drift.left.T @ drift.left) * (weighted @ drift.right.T)).sum().double()
    gradient_a = (b.T @ drift.left @ weighted).mul_(2 * scaling)
    gradient_b = (drift.left @ (weighted @ a.T)).mul_(2 * scaling)
    return PenaltyResult(value, gradient_a, gradient_b)


def covariance_misfit(importance: Importance, device: torch.device, dtype: torch.dtype) -> str | None:
    return None if isinstance(importance, InputCovariance) else f"it computes no {importance.kind} importance"


class Float16(Elementwise):
    """2 bytes an element."""

    format = "float16"

    @classmethod
    def encode(cls, omega: torch.Tensor) -> Float16:
        return cls(matrix_shape(omega), {"": omega.half()})

    @classmethod
    def part_types(cls, shape: tuple[int, int]) -> dict[str, PartType]:
        return {"": (torch.float16, shape)}

    def rows(self, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        return self.parts[""][rows].to(dtype)


def squared(step: Step) -> StepFactors:
    """``w += g**2``."""
    gradient = step.gradient()
    assert isinstance(gradient, Factors)
    return StepFactors(gradient, Factors(-gradient.left, gradient.right))


@contextmanager
def registered(*entries: tuple[Registry[Any], str, Any]) -> Iterator[None]:
    """Register for a while."""
    done: list[tuple[Registry[Any], str]] = []
    try:
        for registry, name, entry in entries:
            registry.register(name, entry)
            done.append((registry, name))
        yield
    finally:
        for registry, name in done:
            registry.remove(name)


COVARIANCE = Backend("input_moments", covariance_penalty, covariance_misfit, preference=50)
A_KIND = (
    (KINDS, "input_moments", Kind("input_moments", uniform_covariance)),
    (FORMATS, "covariance32", InputCovariance),
    (BACKENDS, "input_moments", COVARIANCE),
)
A_FORMAT = (FORMATS, "float16", Float16)
A_BACKEND = (BACKENDS, "mine", Backend("mine", blocked_penalty))
AN_ESTIMATOR = (
    ESTIMATORS,
    "squared",
    Estimator(squared, "summed squares of the gradient", parameterizations=(Parameterization.ADAPTER,)),
)
