"""The penalty as one node of autograd's graph, with gradients that are known before backward begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from alora_trainer.adapted import AdaptedWeight
from alora_trainer.penalty.quadratic import PenaltyStep


class _KnownGradients(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: torch.Tensor, gradients: Sequence[torch.Tensor], *parameters: torch.Tensor
    ) -> torch.Tensor:
        ctx.gradients = gradients
        ctx.kinds = [(p.shape, p.dtype) for p in parameters]
        return value.clone()

    @staticmethod
    def backward(ctx: Any, output_gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # The product is taken before the cast: a loss scaler's factor keeps small half-precision gradients alive.
        scaled = (
            (g * output_gradient.to(g.device, g.dtype)).reshape(shape).to(dtype)
            for g, (shape, dtype) in zip(ctx.gradients, ctx.kinds, strict=True)
        )
        return None, None, *scaled


def penalty_loss(
    weights: Sequence[AdaptedWeight], step: PenaltyStep, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """A scalar to add to the loss: `step`'s value, whose backward gives the factors `step`'s gradients.

    Args:
        weights: the adapted weights in `step`.
        step: the penalty at the present weights.
        dtype, device: those of the loss.
    """
    found: dict[torch.nn.Parameter, torch.Tensor] = {}
    for weight in weights:
        sides = ((weight.parameter_a, weight.of_a), (weight.parameter_b, weight.of_b))
        for (parameter, part), gradient in zip(sides, step.gradients[weight.name], strict=True):
            if not parameter.requires_grad:
                continue
            if weight.expert is None:
                found[parameter] = gradient
            else:  # the experts of a stack share the parameter
                whole = found.setdefault(parameter, torch.zeros_like(parameter, dtype=gradient.dtype))
                part(whole).copy_(gradient)
    return _KnownGradients.apply(step.value.to(device, dtype), list(found.values()), *found)
