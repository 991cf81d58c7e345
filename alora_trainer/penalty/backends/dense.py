"""The penalty by autograd through the whole (m, n) difference: the plain reference that the fast backends are held to."""

from __future__ import annotations

import torch

from alora_trainer.importance.kinds.kind import Importance
from alora_trainer.penalty.backends.backend import Backend, PenaltyResult
from alora_trainer.penalty.backends.pull import pull_back
from alora_trainer.weights.steps import Factors


def dense_penalty(
    importance: Importance, drift: Factors, a: torch.Tensor, b: torch.Tensor, scaling: float
) -> PenaltyResult:
    """As `blocked_penalty` for any kind of importance, with several temporaries of W's own size and gradients by autograd."""
    importance = importance.to(a.device)
    with torch.enable_grad():
        leaf_a, leaf_b = a.detach().clone().requires_grad_(), b.detach().clone().requires_grad_()
        product = leaf_b @ leaf_a
        # Zero in value, and all of D's dependence on the factors: D itself comes in the form that does not cancel.
        difference = drift.left @ drift.right + scaling * (product - product.detach())
        value = (importance.apply(difference) * difference).sum(dtype=torch.float64)
        gradient_a, gradient_b = torch.autograd.grad(value, (leaf_a, leaf_b))
    return PenaltyResult(value.detach(), gradient_a, gradient_b)


DENSE = Backend("dense", dense_penalty, pull=pull_back)
