"""The penalty as one node of autograd's graph, with gradients that are known before backward begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from alora_trainer.penalty.quadratic import PenaltyStep
from alora_trainer.weights.trained_weight import TrainedWeight, placed


class _KnownGradients(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: torch.Tensor, gradients: Sequence[torch.Tensor], *parameters: torch.Tensor
    ) -> torch.Tensor:
        ctx.gradients = gradients
        ctx.parameters = [(p, p.shape) for p in parameters]  # ZeRO-3 lets go of them before the backward pass
        return value.clone()

    @staticmethod
    def backward(ctx: Any, output_gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # The product is taken before the cast: a loss scaler's factor keeps small half-precision gradients alive.
        scaled = (
            placed((g * output_gradient.to(g.device, g.dtype)).reshape(shape).to(p.dtype), p)
            for g, (p, shape) in zip(ctx.gradients, ctx.parameters, strict=True)
        )
        return None, None, *scaled


def penalty_loss(
    weights: Sequence[TrainedWeight], step: PenaltyStep, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """A scalar to add to the loss: `step`'s value, whose backward gives the parameters `step`'s gradients.

    Args:
        weights: the trained weights in `step`.
        step: the penalty at the present weights.
        dtype, device: those of the loss.
    """
    found: dict[torch.nn.Parameter, torch.Tensor] = {}
    for weight in weights:
        sides = zip(weight.parameters, weight.views, step.gradients[weight.name], strict=True)
        for parameter, view, gradient in sides:
            if not parameter.requires_grad:
                continue
            if not weight.shares_parameters:
                found[parameter] = gradient
            else:  # the experts of a stack are slices of one parameter
                shared = found.get(parameter)
                if shared is None:
                    shared = found[parameter] = torch.zeros(
                        parameter.shape, dtype=gradient.dtype, device=gradient.device
                    )
                view(shared).copy_(gradient)
    return _KnownGradients.apply(step.value.to(device, dtype), list(found.values()), *found)
