"""The penalty as one node of autograd's graph, with gradients that are known before backward begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from alora_trainer.penalty.quadratic import PenaltyStep
from alora_trainer.weights.trained_weight import TrainedWeight


class _KnownGradients(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: torch.Tensor, gradients: Sequence[torch.Tensor], *parameters: torch.Tensor
    ) -> torch.Tensor:
        ctx.gradients = gradients
        ctx.kinds = [(p.shape, p.dtype, *_placement(p)) for p in parameters]
        return value.clone()

    @staticmethod
    def backward(ctx: Any, output_gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # The product is taken before the cast: a loss scaler's factor keeps small half-precision gradients alive.
        scaled = (
            _placed((g * output_gradient.to(g.device, g.dtype)).reshape(shape).to(dtype), mesh, placements)
            for g, (shape, dtype, mesh, placements) in zip(ctx.gradients, ctx.kinds, strict=True)
        )
        return None, None, *scaled


def _placement(parameter: torch.Tensor) -> tuple[Any, Any]:
    """How FSDP2 spreads a parameter over processes; (None, None) for an ordinary one."""
    return getattr(parameter, "device_mesh", None), getattr(parameter, "placements", None)


def _placed(gradient: torch.Tensor, mesh: Any, placements: Any) -> torch.Tensor:
    """A gradient that every process has whole, spread as its parameter is; no process sends anything."""
    if mesh is None:
        return gradient
    from torch.distributed.tensor import DTensor, Replicate

    whole = DTensor.from_local(gradient, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return whole.redistribute(mesh, placements)


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
