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
    parameters, gradients = [], []
    for weight in weights:
        pairs = zip((weight.parameter_a, weight.parameter_b), step.gradients[weight.name], strict=True)
        for parameter, gradient in pairs:
            if parameter.requires_grad:
                parameters.append(parameter)
                gradients.append(gradient)
    return _KnownGradients.apply(step.value.to(device, dtype), gradients, *parameters)
