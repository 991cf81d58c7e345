"""From an importance map to the number that is added to the loss, and its gradients."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from alora_trainer.adapted import AdaptedWeight
from alora_trainer.errors import ALoRAError
from alora_trainer.importance.estimators import Factors, movement_factors
from alora_trainer.importance.map import ImportanceMap
from alora_trainer.importance.storage import StoredOmega
from alora_trainer.penalty.backends import Backend, choose

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Held:
    """One weight with what holds it: Omega, theta*, the constant factor in front of its R, and how R is computed."""

    weight: AdaptedWeight
    omega: StoredOmega
    backend: Backend
    reference_a: torch.Tensor
    reference_b: torch.Tensor
    reference_scaling: float
    coefficient: float

    def drift(self, a: torch.Tensor, b: torch.Tensor) -> Factors:
        """``theta - theta* = s B A - s* B* A*`` as thin factors."""
        scaling = self.weight.scaling
        if a.shape == self.reference_a.shape and scaling == self.reference_scaling:
            # The form that does not cancel: exact where the drift is small beside theta itself.
            return movement_factors(self.reference_a, self.reference_b, a, b, scaling)
        left = torch.cat([b * scaling, self.reference_b * -self.reference_scaling], dim=1)
        return Factors(left, torch.cat([a, self.reference_a], dim=0))


@dataclass(frozen=True)
class PenaltyStep:
    """The whole penalty (lambda and layer weights in it) at one point, with its gradients by weight name."""

    value: torch.Tensor
    gradients: dict[str, tuple[torch.Tensor, torch.Tensor]]


class QuadraticPenalty:
    """``lambda sum_l w_l R_l`` with ``R_l = sum_k Omega_k (theta_k - theta*_k)**2`` (arXiv 2501.13669 eq. 16-18).

    Args:
        weights: the adapted weights, all of them in `importance` (see `ImportanceMap.check_model`).
        importance: Omega and theta*; moved to each weight's device.
        lam: lambda.
        layer_weights: "l2" for ``w_l = ||Omega_l||_2`` (eq. 17), "none" for 1.
        normalize: divide Omega by its mean over all adapted weights and w_l by its mean over layers.
        backend: how it is computed, one of `backends.BACKENDS`; None takes the fastest that fits.

    Raises:
        ALoRAError: normalisation is asked for and all importance is zero; the backend does not fit.
    """

    def __init__(
        self,
        weights: Sequence[AdaptedWeight],
        importance: ImportanceMap,
        *,
        lam: float,
        layer_weights: str = "l2",
        normalize: bool = True,
        backend: str | None = None,
    ) -> None:
        coefficients = layer_coefficients(
            importance, [weight.name for weight in weights], layer_weights=layer_weights, normalize=normalize
        )
        self.lam = lam
        self._held = [_hold(weight, importance, coefficients[weight.name], backend) for weight in weights]
        names = sorted({held.backend.name for held in self._held})
        logger.info(f"penalty: {importance.storage} importance, computed by {', '.join(names)}")

    def evaluate(self) -> PenaltyStep:
        """Value and gradients at the present weights: one pass over Omega, no temporary of W's size.

        Returns:
            the value as a float64 scalar; gradients of A (r, n) and B (m, r) in the computation's dtype.
        """
        value: torch.Tensor | None = None
        gradients = {}
        for held in self._held:
            weight = held.weight
            a, b = weight.a.to(weight.dtype), weight.b.to(weight.dtype)
            result = held.backend(held.omega, held.drift(a, b), a, b, weight.scaling)
            factor = self.lam * held.coefficient
            gradients[weight.name] = (result.gradient_a.mul_(factor), result.gradient_b.mul_(factor))
            part = result.value * factor
            value = part if value is None else value + part.to(value.device)
        assert value is not None
        return PenaltyStep(value, gradients)

    def drift(self) -> dict[str, float]:
        """``||theta - theta*||_2`` of every weight, from the small Gram matrices of the drift's factors."""
        norms = {}
        for held in self._held:
            factors = held.drift(held.weight.a.to(held.weight.dtype), held.weight.b.to(held.weight.dtype))
            left, right = factors.left.double(), factors.right.double()
            squared = float(((left.T @ left) * (right @ right.T)).sum())
            norms[held.weight.name] = math.sqrt(max(squared, 0.0))
        return norms


def layer_coefficients(
    importance: ImportanceMap, names: Sequence[str], *, layer_weights: str, normalize: bool
) -> dict[str, float]:
    """What stands before each layer's literal ``sum Omega D**2``: w_l, and the normalisation of Omega and of w_l.

    Means are taken over the weights in `names`, those that the model adapts.

    Raises:
        ALoRAError: `normalize` is set and these weights' importance is zero throughout.
    """
    norms = {name: importance.layer_norms[name] if layer_weights == "l2" else 1.0 for name in names}
    if not normalize:
        return norms
    elements = sum(math.prod(importance.stored(name).shape) for name in names)
    mean = importance.total(names) / elements
    mean_norm = sum(norms.values()) / len(norms)
    if mean == 0 or mean_norm == 0:
        raise ALoRAError("the importance map is zero throughout, so it can hold nothing: record it for more steps")
    return {name: norm / mean_norm / mean for name, norm in norms.items()}


def _hold(weight: AdaptedWeight, importance: ImportanceMap, coefficient: float, backend: str | None) -> _Held:
    reference = importance.reference[weight.name]
    omega = importance.stored(weight.name).to(weight.device)
    return _Held(
        weight=weight,
        omega=omega,
        backend=choose(omega, weight.device, backend, weight.dtype),
        reference_a=reference.a.to(weight.device, weight.dtype),
        reference_b=reference.b.to(weight.device, weight.dtype),
        reference_scaling=reference.scaling,
        coefficient=coefficient,
    )
