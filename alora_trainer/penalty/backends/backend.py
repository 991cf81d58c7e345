"""What a way to compute one weight's penalty is: its function, and what it can be used for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from alora_trainer.importance.kinds.elementwise import Elementwise
from alora_trainer.importance.kinds.kind import Importance
from alora_trainer.weights.steps import Factors


@dataclass(frozen=True)
class PenaltyResult:
    """One weight's ``R`` (a float64 scalar tensor) and its gradients by A (r, n) and B (m, r)."""

    value: torch.Tensor
    gradient_a: torch.Tensor
    gradient_b: torch.Tensor


@dataclass(frozen=True)
class PulledFactors:
    """An adapted weight's factors, whole and to be moved in place by a decoupled update.

    Attributes:
        a, b: A (r, n) and B (m, r), in the parameters' dtype.
        scaling: PEFT's ``scaling``.
        dtype: of the computation.
    """

    a: torch.Tensor
    b: torch.Tensor
    scaling: float
    dtype: torch.dtype

    @property
    def device(self) -> torch.device:
        return self.b.device


Misfit = Callable[[Importance, torch.device, torch.dtype], "str | None"]
Penalty = Callable[[Importance, Factors, torch.Tensor, torch.Tensor, float], PenaltyResult]
Pull = Callable[
    [PulledFactors, Importance, Callable[[torch.Tensor, torch.Tensor], Factors], float, float], torch.Tensor
]


def fits_all(importance: Importance, device: torch.device, dtype: torch.dtype) -> None:
    """The `misfit` of a backend that computes every kind of importance anywhere: None."""


def needs_elements(importance: Importance, device: torch.device, dtype: torch.dtype) -> str | None:
    """The `misfit` of a backend that computes any format of element-wise importance, anywhere."""
    if isinstance(importance, Elementwise):
        return None
    return f"it computes element-wise importance, and this is {importance.kind}"


def thin_factors(importance: Importance) -> tuple[torch.Tensor, torch.Tensor] | None:
    """x (m, C) and y (n, C) with ``Omega = x y'``, where importance is element-wise and kept so; else None."""
    return importance.thin_factors if isinstance(importance, Elementwise) else None


@dataclass(frozen=True)
class Backend:
    """One way to compute an adapted weight's ``R = <D, M D>``, its gradients, and its decoupled update.

    Attributes:
        name: what `ALoRAConfig.backend` calls it.
        penalty: ``penalty(importance, drift, a, b, scaling)``, see `__call__`.
        misfit: ``misfit(importance, device, dtype)``: why it cannot be used for this importance, for factors on this device, in
            this dtype of the computation; None if it can. It asks what the importance offers, not how it is stored.
        preference: of several that fit, the one with the smallest number is taken; None is never taken unless it is named.
        devices: types of devices ("cuda") on which it may be taken without being named; None is any.
        pull: the decoupled update, ``pull(factors, importance, drift, strength_a, strength_b)``, which moves the weight's
            factors in place and returns R before it (see `pull.pull_back`); None where there is none.
    """

    name: str
    penalty: Penalty
    misfit: Misfit = fits_all
    preference: int | None = None
    devices: tuple[str, ...] | None = None
    pull: Pull | None = None

    def __call__(
        self, importance: Importance, drift: Factors, a: torch.Tensor, b: torch.Tensor, scaling: float
    ) -> PenaltyResult:
        """``R = <D, M D>`` with its gradients by A and B.

        Args:
            importance: of the weight, (m, n); brought to the factors' device if it is elsewhere.
            drift: ``D = theta - theta*`` as factors, (m, k) and (k, n).
            a, b: the adapter's present factors, (r, n) and (m, r), in the dtype of the computation.
            scaling: PEFT's ``scaling``.
        """
        return self.penalty(importance, drift, a, b, scaling)

    def is_preferred_on(self, device: torch.device) -> bool:
        """Whether it may be taken on this device without being named."""
        return self.preference is not None and (self.devices is None or device.type in self.devices)
