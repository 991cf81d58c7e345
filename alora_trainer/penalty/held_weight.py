"""One weight with what holds it, but for Omega: the anchor, the constant in front of its R, and how R is computed."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.kinds.kind import Importance
from alora_trainer.penalty.backends.choice import Backend, choose
from alora_trainer.penalty.backends.pull import pull_back
from alora_trainer.weights.adapted import AdaptedWeight
from alora_trainer.weights.reference import FullReference, Reference
from alora_trainer.weights.row_blocks import row_blocks
from alora_trainer.weights.steps import Factors, movement_factors
from alora_trainer.weights.trained_weight import Matrices, TrainedWeight


class HeldWeight(ABC):
    """A weight that the penalty holds, and its share ``coefficient * R`` of the penalty for lambda 1.

    Attributes:
        weight: it.
        coefficient: w_l, and what normalises.
        backend: the name of the way R is computed.
    """

    weight: TrainedWeight
    coefficient: float
    backend: str

    @abstractmethod
    def evaluate(self, omega: Importance, matrices: Matrices) -> tuple[torch.Tensor, Matrices]:
        """R (a float64 scalar) and its gradients by the weight's parameters.

        Args:
            omega: the weight's importance, (m, n), on its device.
            matrices: the values of the weight's parameters, in the dtype of the computation.
        """

    @abstractmethod
    def drift_norm(self, matrices: Matrices) -> float:
        """``||theta - anchor||_2``."""

    @abstractmethod
    def pull(self, omega: Importance, rates: Mapping[int, float], lam: float) -> torch.Tensor:
        """Move the parameters by an implicit step of their learning rate times lambda; R before it."""


@dataclass(frozen=True)
class HeldAdapted(HeldWeight):
    """An adapted weight, held by thin factors: nothing of its own size but Omega."""

    weight: AdaptedWeight
    coefficient: float
    chosen: Backend
    reference: Reference

    @property
    def backend(self) -> str:  # type: ignore[override]
        return self.chosen.name

    def drift(self, a: torch.Tensor, b: torch.Tensor) -> Factors:
        """``theta - theta* = s B A - s* B* A*`` as thin factors."""
        scaling, there = self.weight.scaling, self.reference
        if a.shape == there.a.shape and scaling == there.scaling:
            # The form that does not cancel: exact where the drift is small beside theta itself.
            return movement_factors(there.a, there.b, a, b, scaling)
        left = torch.cat([b * scaling, there.b * -there.scaling], dim=1)
        return Factors(left, torch.cat([a, there.a], dim=0))

    def evaluate(self, omega: Importance, matrices: Matrices) -> tuple[torch.Tensor, Matrices]:
        a, b = matrices
        result = self.chosen(omega, self.drift(a, b), a, b, self.weight.scaling)
        return result.value, (result.gradient_a, result.gradient_b)

    def drift_norm(self, matrices: Matrices) -> float:
        factors = self.drift(*matrices)
        # From the small Gram matrices of the drift's factors.
        left, right = factors.left.double(), factors.right.double()
        squared = float(((left.T @ left) * (right @ right.T)).sum())
        return math.sqrt(max(squared, 0.0))

    def pull(self, omega: Importance, rates: Mapping[int, float], lam: float) -> torch.Tensor:
        rate_a, rate_b = (rates.get(id(p), 0.0) * lam * self.coefficient for p in self.weight.parameters)
        return pull_back(self.weight, omega, self.drift, rate_a, rate_b)


@dataclass(frozen=True)
class HeldFull(HeldWeight):
    """A weight that is a parameter itself: EWC's and Synaptic Intelligence's penalty as published, in blocks of rows."""

    weight: TrainedWeight
    coefficient: float
    reference: torch.Tensor
    backend: str = "full"

    def evaluate(self, omega: Importance, matrices: Matrices) -> tuple[torch.Tensor, Matrices]:
        (theta,) = matrices
        value = torch.zeros((), dtype=torch.float64, device=theta.device)
        gradient = torch.empty_like(theta)
        for rows in row_blocks(*omega.shape, theta.device):
            drift = theta[rows] - self.reference[rows]
            weighted = omega.rows(rows, theta.dtype) * drift
            value += torch.dot(weighted.reshape(-1), drift.reshape(-1)).double()
            gradient[rows] = weighted.mul_(2)
        return value, (gradient,)

    def drift_norm(self, matrices: Matrices) -> float:
        return float(torch.linalg.vector_norm(matrices[0] - self.reference, dtype=torch.float64))

    def pull(self, omega: Importance, rates: Mapping[int, float], lam: float) -> torch.Tensor:
        """The exact minimum of ``|theta' - theta|**2 / 2 t + Omega (theta' - theta*)**2``, element by element."""
        strength = rates.get(id(self.weight.parameters[0]), 0.0) * lam * self.coefficient
        value = torch.zeros((), dtype=torch.float64, device=self.weight.device)
        theta = self.weight.matrices[0]
        for rows in row_blocks(*omega.shape, theta.device):
            drift = theta[rows].to(self.weight.dtype) - self.reference[rows]
            importance = omega.rows(rows, self.weight.dtype)
            value += (importance * drift * drift).sum(dtype=torch.float64)
            stiffness = importance * (2 * strength)
            theta[rows] -= (drift * stiffness / (1 + stiffness)).to(theta.dtype)
        return value


def hold(
    weight: TrainedWeight,
    omega: Importance,
    reference: Reference | FullReference,
    coefficient: float,
    backend: str | None,
) -> HeldWeight:
    """What holds `weight` at `reference`.

    Args:
        omega: of the weight, wherever it is; only its format counts here.
        backend: forced, or None; a full weight knows one way only.

    Raises:
        ALoRAError: the backend or the kind of the reference does not fit.
    """
    if isinstance(weight, AdaptedWeight) and isinstance(reference, Reference):
        chosen = choose(omega, weight.device, backend, weight.dtype)
        there = Reference(
            reference.a.to(weight.device, weight.dtype), reference.b.to(weight.device, weight.dtype), reference.scaling
        )
        return HeldAdapted(weight, coefficient, chosen, there)
    if isinstance(reference, FullReference) and not isinstance(weight, AdaptedWeight):
        return HeldFull(weight, coefficient, reference.weight.to(weight.device, weight.dtype))
    kind = "whole weights" if isinstance(reference, FullReference) else "a LoRA adapter"
    raise ALoRAError(
        f"the importance map was recorded for {kind}, and {weight.name} is trained otherwise: set full_parameters as it was "
        "for the recording"
    )
