"""The penalty of a factored Omega from Gram matrices of the thin factors: O(C (m + n) k^2), never (m, n).

With ``Omega = sum_c x_c y_c'`` and ``D = P Q`` (P (m, k), Q (k, n)):

    R     = sum_c <P' diag(x_c) P, Q diag(y_c) Q'>
    dR/dB = 2 s sum_c diag(x_c) P (Q diag(y_c) A')
    dR/dA = 2 s sum_c (B' diag(x_c) P) Q diag(y_c)
"""

from __future__ import annotations

import torch

from alora_trainer.importance.kinds.kind import Importance
from alora_trainer.penalty.backends.backend import Backend, PenaltyResult, thin_factors
from alora_trainer.penalty.backends.pull import pull_back
from alora_trainer.weights.steps import Factors


def gram_penalty(
    importance: Importance, drift: Factors, a: torch.Tensor, b: torch.Tensor, scaling: float
) -> PenaltyResult:
    """As `blocked_penalty`, for an Omega that is kept as thin factors.

    All in float64: where theta and theta* nearly cancel, R is a small difference of large Gram matrices, quadratically worse
    conditioned than D itself; and the arithmetic is a thousandth of a dense pass.
    """
    factors = thin_factors(importance)
    assert factors is not None  # as `_misfit` sees to
    x, y = (factor.to(a.device).double() for factor in factors)
    p, q, a64, b64 = drift.left.double(), drift.right.double(), a.double(), b.double()
    # Components side by side along the inner dimension: one matrix product sums over them all.
    weighted_p = (x[:, :, None] * p[:, None, :]).flatten(1)  # (m, C k)
    weighted_q = (y.T[:, None, :] * q[None, :, :]).flatten(0, 1)  # (C k, n)
    value = ((weighted_p.T @ p) * (weighted_q @ q.T)).sum()
    gradient_a = ((b64.T @ weighted_p) @ weighted_q).mul_(2 * scaling)
    gradient_b = (weighted_p @ (weighted_q @ a64.T)).mul_(2 * scaling)
    return PenaltyResult(value, gradient_a.to(a.dtype), gradient_b.to(b.dtype))


def _misfit(importance: Importance, device: torch.device, dtype: torch.dtype) -> str | None:
    if thin_factors(importance) is None:
        return f"the importance is stored as {importance.format}, not factored"
    return None


GRAM = Backend("gram", gram_penalty, _misfit, preference=100, pull=pull_back)
