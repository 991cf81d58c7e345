"""The gradients of an optimizer step, looked at before the optimizer takes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.utils import get_total_norm

from alora_trainer.errors import Diverged
from alora_trainer.weights.trained_weight import TrainedWeight, first_not_finite, whole


def check_gradients(model: torch.nn.Module, weights: Sequence[TrainedWeight]) -> None:
    """Refuse gradients that are not finite, or whose squares are not: clipping and Adam make a step of NaN of them, or none.

    Args:
        model: with the gradients of the whole step, the same on all processes. An engine that keeps them to itself leaves
            none, and nothing is looked at.
        weights: those that train, to name one.

    Raises:
        Diverged: with the weight that shows it first.
    """
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if not found or bool(torch.isfinite(whole(get_total_norm(list(found.values()))))):
        return
    names = {id(p): weight.name for weight in weights for p in weight.parameters}
    owners = {name: names.get(id(p), name) for name, p in model.named_parameters()}
    broken = first_not_finite({name: [whole(gradient)] for name, gradient in found.items()})
    if broken is not None:
        raise Diverged("the gradient", owners[broken])
    largest = max(found, key=lambda name: float(whole(found[name]).abs().max()))
    raise Diverged("the square of the gradient", owners[largest])
