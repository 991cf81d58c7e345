"""The path integral's integrand, one optimizer step at a time, as products of thin factors.

With ``W = W0 + s B A`` and a step from (A, B) to (A', B'), everything that an estimator multiplies element by element has
rank 2r at most, so a step is kept as four thin matrices and never as a matrix of W's own size:

    gradient  g = left @ right,   movement  D = left @ right,   w -= g * D    (elementwise)

Where W itself is the parameter (full tuning), g and D are matrices of its own size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from alora_trainer.basics.registry import Registry
from alora_trainer.weights.parameterization import Parameterization
from alora_trainer.weights.steps import Factors, FactorStep, Matrix, Step

# Added to the diagonal of a Gram matrix, as a share of its mean: a direction in which a factor is a thirtieth as large as on
# average counts half. What is computed in bfloat16 (a relative error of 0.4 %) is then blown up sixteen times at most.
_RIDGE = 1e-3


@dataclass(frozen=True)
class StepFactors:
    """One step of one weight: the gradient of W and the movement of W, both (m, n) of rank 2r at most.

    The exact estimator's gradient, and all of full tuning, has full rank and is the matrix itself.
    """

    gradient: Matrix
    movement: Matrix


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


@dataclass(frozen=True)
class Estimator:
    """How the path integral's integrand ``g * D`` is computed from one optimizer step of one weight.

    A `Recorder` asks for what an estimator says that it needs, and for nothing else.

    Attributes:
        integrand: g and D of a step, both (m, n).
        description: how importance is estimated, for the card of a map: a part of a sentence.
        uses_learning_rate: the step's learning rate counts, so that A and B must have the same one.
        true_gradient: the step's gradient is to be that of W itself, which hooks on the layers add up: one more (m, n) matrix
            a weight, and no step waits to be folded in later. Else it is what LoRA's own gradients show of it.
        parameterizations: what may be recorded by it.
    """

    integrand: Callable[[Step], StepFactors]
    description: str
    uses_learning_rate: bool = False
    true_gradient: bool = False
    parameterizations: tuple[Parameterization, ...] = tuple(Parameterization)


ESTIMATORS: Registry[Estimator] = Registry("estimator")
ESTIMATORS.register(
    "projected",
    Estimator(
        projected,
        "the path integral of Synaptic Intelligence along the optimizer's movement, with an estimate of the weights' true "
        "gradient from those of the adapter's factors (eq. 15)",
    ),
)
ESTIMATORS.register(
    "path",
    Estimator(
        path,
        "the path integral of Synaptic Intelligence along the movement that the optimizer really made (eq. 13-15)",
        uses_learning_rate=True,
    ),
)
ESTIMATORS.register(
    "paper",
    Estimator(
        paper,
        "the path integral of Synaptic Intelligence as the paper writes it, learning rate times gradient (eq. 13-15)",
        uses_learning_rate=True,
    ),
)
ESTIMATORS.register(
    "exact",
    Estimator(
        path,
        "the path integral of Synaptic Intelligence with the true gradient of the weights (eq. 15)",
        true_gradient=True,
        parameterizations=(Parameterization.ADAPTER,),
    ),
)
