"""What one optimizer step did to one weight: its gradient and its movement, as thin factors where they are thin."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True)
class Factors:
    """A matrix (m, n) of low rank as ``left @ right``: left (m, k), right (k, n)."""

    left: torch.Tensor
    right: torch.Tensor

    def to(self, device: torch.device) -> Factors:
        """The same on a device; what is there already is not copied."""
        return Factors(self.left.to(device), self.right.to(device))

    def norm(self) -> float:
        """``||left @ right||_2`` (Frobenius), in float64 and from the small Gram matrices of the factors alone."""
        left, right = self.left.double(), self.right.double()
        squared = float(((left.T @ left) * (right @ right.T)).sum())
        return math.sqrt(max(squared, 0.0))


# A matrix (m, n): thin factors where its rank is low, the matrix itself where it is not.
Matrix = Factors | torch.Tensor


class Step(Protocol):
    """What one optimizer step did to one weight."""

    @property
    def learning_rate(self) -> float:
        """eta of this step."""

    def gradient(self) -> Matrix:
        """The data loss's gradient of W."""

    def movement(self) -> Matrix:
        """The movement of W that the optimizer really made."""


@dataclass(frozen=True)
class FactorStep:
    """What one optimizer step did to one adapted weight, in the dtype of the computation.

    Attributes:
        a, b: the factors before the step, (r, n) and (m, r).
        gradient_a, gradient_b: the data loss's gradients of A and B: unclipped, unscaled, without any penalty.
        a_after, b_after: the factors after the step.
        scaling: PEFT's ``scaling`` s.
        learning_rate: eta of this step.
    """

    a: torch.Tensor
    b: torch.Tensor
    gradient_a: torch.Tensor
    gradient_b: torch.Tensor
    a_after: torch.Tensor
    b_after: torch.Tensor
    scaling: float
    learning_rate: float

    def gradient(self) -> Factors:
        return gradient_factors(self)

    def movement(self) -> Factors:
        return movement_factors(self.a, self.b, self.a_after, self.b_after, self.scaling)


@dataclass(frozen=True)
class FullStep:
    """What one optimizer step did to a weight that is a parameter itself, in the dtype of the computation.

    Attributes:
        before, after: W, (m, n).
        data_gradient: the data loss's gradient of W: unclipped, unscaled, without any penalty.
        learning_rate: eta of this step.
    """

    before: torch.Tensor
    data_gradient: torch.Tensor
    after: torch.Tensor
    learning_rate: float

    def gradient(self) -> torch.Tensor:
        return self.data_gradient

    def movement(self) -> torch.Tensor:
        return self.after - self.before


def gradient_factors(step: FactorStep) -> Factors:
    """``g = s (gB A + B gA - eta gB gA)`` (arXiv 2501.13669 eq. 13) as ``s [gB, B] @ [A - eta gA; gA]``."""
    left = torch.cat([step.gradient_b, step.b], dim=1).mul_(step.scaling)
    right = torch.cat([step.a - step.learning_rate * step.gradient_a, step.gradient_a], dim=0)
    return Factors(left, right)


def movement_factors(
    a: torch.Tensor, b: torch.Tensor, a_after: torch.Tensor, b_after: torch.Tensor, scaling: float
) -> Factors:
    """``s (B' A' - B A)`` as ``s [B' - B, B] @ [A'; A' - A]``, a form that does not cancel when the step is small."""
    left = torch.cat([b_after - b, b], dim=1).mul_(scaling)
    right = torch.cat([a_after, a_after - a], dim=0)
    return Factors(left, right)
