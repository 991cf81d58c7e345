"""One weight with what holds it, but for Omega: the anchor, the constant in front of its R, and how R is computed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.kinds.elementwise import Elementwise
from alora_trainer.importance.kinds.kind import Importance
from alora_trainer.penalty.backends.backend import Backend, PulledFactors
from alora_trainer.penalty.backends.choice import choose
from alora_trainer.weights.adapted import AdaptedWeight
from alora_trainer.weights.full_weight import FullWeight
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
    def evaluate(self, importance: Importance, matrices: Matrices) -> tuple[torch.Tensor, Matrices]:
        """R (a float64 scalar) and its gradients by the weight's parameters.

        Args:
            importance: of the weight, (m, n), on its device.
            matrices: the values of the weight's parameters, in the dtype of the computation.
        """

    @abstractmethod
    def drift_norm(self, matrices: Matrices) -> float:
        """``||theta - anchor||_2``."""

    @abstractmethod
    def check_pull(self, importance: Importance) -> None:
        """Raise ALoRAError unless `pull` can be called with importance of this kind."""

    @abstractmethod
    def pull(self, importance: Importance, matrices: Matrices, rates: Mapping[int, float], lam: float) -> torch.Tensor:
        """Move the parameters by an implicit step of their learning rate times lambda; R before it.

        Args:
            importance: as for `evaluate`.
            matrices: the values of the weight's parameters, in their own dtype; moved in place.
            rates: learning rates by ``id(parameter)``.
            lam: lambda.
        """


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

    def evaluate(self, importance: Importance, matrices: Matrices) -> tuple[torch.Tensor, Matrices]:
        a, b = matrices
        result = self.chosen(importance, self.drift(a, b), a, b, self.weight.scaling)
        return result.value, (result.gradient_a, result.gradient_b)

    def drift_norm(self, matrices: Matrices) -> float:
        return self.drift(*matrices).norm()

    def check_pull(self, importance: Importance) -> None:
        if self.chosen.pull is None:
            raise ALoRAError(
                f"the penalty backend {self.chosen.name!r} has no decoupled update for {self.weight.name}: say "
                "application='coupled', and leave budget out"
            )

    def pull(self, importance: Importance, matrices: Matrices, rates: Mapping[int, float], lam: float) -> torch.Tensor:
        self.check_pull(importance)
        assert self.chosen.pull is not None
        rate_a, rate_b = (rates.get(id(p), 0.0) * lam * self.coefficient for p in self.weight.parameters)
        a, b = matrices
        factors = PulledFactors(a, b, self.weight.scaling, self.weight.dtype)
        return self.chosen.pull(factors, importance, self.drift, rate_a, rate_b)


@dataclass(frozen=True)
class HeldFull(HeldWeight):
    """A weight that is a parameter itself: EWC's and Synaptic Intelligence's penalty as published, in blocks of rows.

    Importance of another kind than element-wise is applied to the whole drift at once.
    """

    weight: FullWeight
    coefficient: float
    reference: torch.Tensor
    backend: str = "full"

    def evaluate(self, importance: Importance, matrices: Matrices) -> tuple[torch.Tensor, Matrices]:
        (theta,) = matrices
        if not isinstance(importance, Elementwise):
            drift = theta - self.reference
            weighted = importance.apply(drift)
            return (weighted * drift).sum(dtype=torch.float64), (weighted.mul_(2),)
        value = torch.zeros((), dtype=torch.float64, device=theta.device)
        gradient = torch.empty_like(theta)
        for rows in row_blocks(*importance.shape, theta.device):
            drift = theta[rows] - self.reference[rows]
            weighted = importance.rows(rows, theta.dtype) * drift
            value += torch.dot(weighted.reshape(-1), drift.reshape(-1)).double()
            gradient[rows] = weighted.mul_(2)
        return value, (gradient,)

    def drift_norm(self, matrices: Matrices) -> float:
        return float(torch.linalg.vector_norm(matrices[0] - self.reference, dtype=torch.float64))

    def check_pull(self, importance: Importance) -> None:
        if not isinstance(importance, Elementwise):
            raise ALoRAError(
                f"whole weights have no decoupled update for {importance.kind} importance: say application='coupled', and "
                "leave budget out"
            )

    def pull(self, importance: Importance, matrices: Matrices, rates: Mapping[int, float], lam: float) -> torch.Tensor:
        """The exact minimum of ``|theta' - theta|**2 / 2 t + Omega (theta' - theta*)**2``, element by element."""
        self.check_pull(importance)
        assert isinstance(importance, Elementwise)
        strength = rates.get(id(self.weight.parameters[0]), 0.0) * lam * self.coefficient
        value = torch.zeros((), dtype=torch.float64, device=self.weight.device)
        (theta,) = matrices
        for rows in row_blocks(*importance.shape, theta.device):
            drift = theta[rows].to(self.weight.dtype) - self.reference[rows]
            omega = importance.rows(rows, self.weight.dtype)
            value += (omega * drift * drift).sum(dtype=torch.float64)
            stiffness = omega * (2 * strength)
            # Not drift * stiffness / (1 + stiffness), which is no number where the stiffness overflows.
            theta[rows] -= (drift / (1 + stiffness.reciprocal())).to(theta.dtype)
        return value


def hold(
    weight: TrainedWeight,
    importance: Importance,
    anchor: Reference | FullReference,
    coefficient: float,
    backend: str | None,
) -> HeldWeight:
    """What holds `weight` at `anchor`.

    Args:
        importance: of the weight, wherever it is; only what it offers counts here.
        anchor: the weight's own, for its parameterization.
        coefficient: what stands before R: w_l, and what normalises.
        backend: forced, or None; a full weight knows one way only.

    Raises:
        ALoRAError: the backend does not fit, or the anchor is for another parameterization than the weight has.
    """
    there = anchor.to(weight.device, weight.dtype)
    if isinstance(weight, AdaptedWeight) and isinstance(there, Reference):
        chosen = choose(importance, weight.device, backend, weight.dtype)
        return HeldAdapted(weight, coefficient, chosen, there)
    if isinstance(weight, FullWeight) and isinstance(there, FullReference):
        return HeldFull(weight, coefficient, there.weight)
    raise ALoRAError(
        f"the importance map was recorded for {anchor.parameterization.words}, and {weight.name} is trained otherwise: set "
        "full_parameters as it was for the recording"
    )
