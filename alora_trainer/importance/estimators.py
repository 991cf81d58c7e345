"""The path integral's integrand, one optimizer step at a time, as products of thin factors.

With ``W = W0 + s B A`` and a step from (A, B) to (A', B'), everything that an estimator multiplies element by element has
rank 2r at most, so a step is kept as four thin matrices and never as a matrix of W's own size:

    gradient  g = left @ right,   movement  D = left @ right,   w -= g * D    (elementwise)

Where W itself is the parameter (full tuning), g and D are matrices of its own size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

# Added to the diagonal of a Gram matrix, as a share of its mean: a direction in which a factor is a thirtieth as large as on
# average counts half. What is computed in bfloat16 (a relative error of 0.4 %) is then blown up sixteen times at most.
_RIDGE = 1e-3


@dataclass(frozen=True)
class Factors:
    """A matrix (m, n) of low rank as ``left @ right``: left (m, k), right (k, n)."""

    left: torch.Tensor
    right: torch.Tensor

    def to(self, device: torch.device) -> Factors:
        return Factors(self.left.to(device), self.right.to(device))


# A matrix (m, n): thin factors where its rank is low, the matrix itself where it is not.
Matrix = Factors | torch.Tensor


@dataclass(frozen=True)
class StepFactors:
    """One step of one weight: the gradient of W and the movement of W, both (m, n) of rank 2r at most.

    The exact estimator's gradient, and all of full tuning, has full rank and is the matrix itself.
    """

    gradient: Matrix
    movement: Matrix


class Step(Protocol):
    """What one optimizer step did to one weight."""

    @property
    def learning_rate(self) -> float: ...

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


def projected_gradient(step: FactorStep) -> Factors:
    """The least-squares estimate of the true gradient G of W from what LoRA sees of it, ``gA = s B' G`` and ``gB = s G A'``.

    Of all matrices with these two products it is the smallest: ``G P_A + P_B G - P_B G P_A`` with the projections P_A on
    the row space of A and P_B on the column space of B. It has G's own units, whatever the sizes of A and B, and the sum of
    its product with a movement ``s (dB A + B dA)`` is the first-order change of the loss, as G's own is.
    """
    u = (step.gradient_b @ _damped_inverse(step.a @ step.a.T)).div_(step.scaling)  # G A' (A A')^-1
    inverse = _damped_inverse(step.b.T @ step.b)
    v = (inverse @ step.gradient_a).div_(step.scaling)  # (B' B)^-1 B' G
    left = torch.cat([u - step.b @ (inverse @ (step.b.T @ u)), step.b], dim=1)
    return Factors(left, torch.cat([step.a, v], dim=0))


def _damped_inverse(gram: torch.Tensor) -> torch.Tensor:
    """``(gram + ridge I)^-1`` of a small Gram matrix (r, r); a zero one (B at the start) gives a finite result."""
    exact = gram.double() if gram.device.type != "mps" else gram
    ridge = exact.diagonal().mean() * _RIDGE + 1e-30
    shifted = exact + ridge * torch.eye(len(gram), dtype=exact.dtype, device=gram.device)
    # Symmetric and positive, so there is nothing to check, and a device need not be waited for.
    return torch.linalg.inv_ex(shifted, check_errors=False).inverse.to(gram.dtype)


def paper(step: Step) -> StepFactors:
    """Eq. 14: the movement is taken to be ``-eta g``, so that ``w += eta g**2``."""
    gradient = step.gradient()
    if isinstance(gradient, torch.Tensor):
        return StepFactors(gradient, gradient * -step.learning_rate)
    return StepFactors(gradient, Factors(gradient.left * -step.learning_rate, gradient.right))


def path(step: Step) -> StepFactors:
    """The same gradient with the movement that the optimizer really made (AdamW does not move by ``-eta g``)."""
    return StepFactors(step.gradient(), step.movement())


def projected(step: Step) -> StepFactors:
    """The real movement with `projected_gradient`: what `exact` would record, as far as LoRA's own gradients show it."""
    if isinstance(step, FactorStep):
        return StepFactors(projected_gradient(step), step.movement())
    return path(step)
