"""From an importance map to the number that is added to the loss, and its gradients."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from alora_trainer.adapted import AdaptedWeight
from alora_trainer.importance.estimators import Factors, movement_factors
from alora_trainer.importance.map import ImportanceMap, Reference
from alora_trainer.importance.storage import StoredOmega
from alora_trainer.penalty.anchor import anchor_of
from alora_trainer.penalty.backends import Backend, choose
from alora_trainer.penalty.decoupled import pull_back
from alora_trainer.penalty.layer_weights import layer_coefficients

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
        weights: the weights to hold, all of them in `importance` (see `ImportanceMap.check_model`).
        importance: Omega and theta*; moved to each weight's device.
        lam: lambda; may be set anew between two evaluations.
        layer_weights: "l2" for ``w_l = ||Omega_l||_2`` (eq. 17), "none" for 1, or a mapping, see `given_layer_weights`.
        normalize: divide Omega by its mean over all held weights and w_l by its mean over layers.
        backend: how it is computed, one of `backends.BACKENDS`; None takes the fastest that fits.
        anchors: what to pull every weight towards, by name; None is theta*, for the adapter that was recorded.

    Raises:
        ALoRAError: normalisation is asked for and all importance is zero; the backend or a layer weight does not fit.
    """

    def __init__(
        self,
        weights: Sequence[AdaptedWeight],
        importance: ImportanceMap,
        *,
        lam: float,
        layer_weights: str | Mapping[str, float] = "l2",
        normalize: bool = True,
        backend: str | None = None,
        anchors: Mapping[str, Reference] | None = None,
    ) -> None:
        anchors = anchors or {weight.name: anchor_of(weight, importance) for weight in weights}
        coefficients = layer_coefficients(
            importance, [weight.name for weight in weights], layer_weights=layer_weights, normalize=normalize
        )
        self.lam = lam
        self._held = [
            _hold(weight, importance, anchors[weight.name], coefficients[weight.name], backend) for weight in weights
        ]
        names = sorted({held.backend.name for held in self._held})
        logger.info(f"penalty: {importance.storage} importance, computed by {', '.join(names)}")

    @property
    def weights(self) -> list[AdaptedWeight]:
        """The held weights."""
        return [held.weight for held in self._held]

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

    def pull(self, learning_rates: Mapping[int, float]) -> torch.Tensor:
        """Move the weights towards their anchors, beside the optimizer: the decoupled application of the penalty.

        Every factor moves by an implicit step of its learning rate times lambda (see `decoupled`).

        Args:
            learning_rates: by ``id(parameter)``; a factor that is not in it (frozen, say) stays.

        Returns:
            the penalty before the pull, a float64 scalar.
        """
        value: torch.Tensor | None = None
        for held in self._held:
            rate_a, rate_b = (
                learning_rates.get(id(p), 0.0) for p in (held.weight.parameter_a, held.weight.parameter_b)
            )
            factor = self.lam * held.coefficient
            part = pull_back(held.weight, held.omega, held.drift, rate_a * factor, rate_b * factor) * factor
            value = part if value is None else value + part.to(value.device)
        assert value is not None
        return value

    def drift(self) -> dict[str, float]:
        """``||theta - theta*||_2`` of every weight, from the small Gram matrices of the drift's factors."""
        norms = {}
        for held in self._held:
            factors = held.drift(held.weight.a.to(held.weight.dtype), held.weight.b.to(held.weight.dtype))
            left, right = factors.left.double(), factors.right.double()
            squared = float(((left.T @ left) * (right @ right.T)).sum())
            norms[held.weight.name] = math.sqrt(max(squared, 0.0))
        return norms


def _hold(
    weight: AdaptedWeight, importance: ImportanceMap, reference: Reference, coefficient: float, backend: str | None
) -> _Held:
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
