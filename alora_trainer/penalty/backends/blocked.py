"""The penalty of one weight in row blocks: value and both gradients in one reading of Omega, in any torch device.

With the drift ``D = left @ right`` (rank 2r) and ``E = Omega * D`` elementwise, all of a block of rows at a time:

    R = sum(E * D),    dR/dB = 2 s E A',    dR/dA = 2 s B' E
"""

from __future__ import annotations

from typing import cast

import torch

from alora_trainer.importance.kinds.elementwise import Elementwise
from alora_trainer.importance.kinds.kind import Importance
from alora_trainer.penalty.backends.backend import Backend, PenaltyResult, needs_elements
from alora_trainer.penalty.backends.pull import pull_back
from alora_trainer.weights.row_blocks import block_rows, row_blocks
from alora_trainer.weights.steps import Factors


def blocked_penalty(
    importance: Importance, drift: Factors, a: torch.Tensor, b: torch.Tensor, scaling: float
) -> PenaltyResult:
    """``R = sum Omega * D**2`` with its gradients, never holding more than a block of D or of the decoded Omega.

    Args:
        importance: element-wise, (m, n), in any format; brought to the factors' device if it is elsewhere.
        drift: ``D = theta - theta*`` as factors, (m, k) and (k, n).
        a, b: the adapter's present factors, (r, n) and (m, r), in the dtype of the computation.
        scaling: PEFT's ``scaling``.
    """
    device, dtype = a.device, a.dtype
    stored = cast(Elementwise, importance.to(device))
    value = torch.zeros((), dtype=torch.float64, device=device)
    gradient_a, gradient_b = torch.zeros_like(a), torch.empty_like(b)
    difference = torch.empty(block_rows(*stored.shape, device), stored.shape[1], dtype=dtype, device=device)
    weighted = torch.empty_like(difference)
    for rows in row_blocks(*stored.shape, device):
        count = rows.stop - rows.start
        d = torch.mm(drift.left[rows], drift.right, out=difference[:count])
        e = torch.mul(stored.rows(rows, dtype), d, out=weighted[:count])
        value += torch.dot(e.reshape(-1), d.reshape(-1)).double()
        torch.mm(e, a.T, out=gradient_b[rows])
        gradient_a.addmm_(b[rows].T, e)
    return PenaltyResult(value, gradient_a.mul_(2 * scaling), gradient_b.mul_(2 * scaling))


BLOCKED = Backend("blocked", blocked_penalty, needs_elements, preference=300, pull=pull_back)
