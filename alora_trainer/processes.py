"""Several processes: which of them holds which weights' importance, and how what they computed comes together.

Importance is as large as the weights themselves, so each process keeps that of its own weights only: the path integral while
recording, Omega while protecting. What comes out (a penalty's value and gradients, a finished map) is the same on all of
them. Nothing here starts processes; torchrun or accelerate do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist

from alora_trainer.weights import TrainedWeight


class Processes:
    """The processes that train together; one, where nothing was launched.

    Attributes:
        rank: this process's number.
        count: how many there are.
    """

    def __init__(self) -> None:
        there = dist.is_available() and dist.is_initialized()
        self.rank: int = dist.get_rank() if there else 0
        self.count: int = dist.get_world_size() if there else 1

    def owners(self, weights: Sequence[TrainedWeight]) -> dict[str, int]:
        """The process that holds each weight's importance: the largest first, each to the process that has least so far."""
        loads = [0] * self.count
        owners = {}
        for weight in sorted(weights, key=lambda w: -math.prod(w.shape)):
            owner = loads.index(min(loads))
            owners[weight.name] = owner
            loads[owner] += math.prod(weight.shape)
        return owners

    def sum(self, tensors: Sequence[torch.Tensor]) -> None:
        """Add tensors of one device up over processes, in place; all processes give the same shapes and dtypes.

        Tensors of one dtype travel together, so that thin factors cost one message.
        """
        if self.count == 1:
            return
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            alike = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.reshape(-1) for tensor in alike])
            dist.all_reduce(flat)
            for tensor, part in zip(alike, flat.split([t.numel() for t in alike]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def from_owner(self, tensor: torch.Tensor, owner: int) -> torch.Tensor:
        """`tensor` as it is on the process `owner`, in place on all others."""
        if self.count > 1:
            there = tensor if _can_travel(tensor) else tensor.to(_device())
            there = there.contiguous()
            dist.broadcast(there, src=owner)
            if there is not tensor:
                tensor.copy_(there)
        return tensor

    def total(self, number: float, device: torch.device) -> float:
        """The sum of a number over processes."""
        if self.count == 1:
            return number
        kind = torch.float32 if device.type == "mps" else torch.float64
        tensor = torch.tensor([number], dtype=kind, device=device)
        dist.all_reduce(tensor)
        return float(tensor)

    def totals(self, numbers: Mapping[str, float], device: torch.device) -> dict[str, float]:
        """The same for many numbers, in one message."""
        if self.count == 1 or not numbers:
            return dict(numbers)
        tensor = torch.tensor(list(numbers.values()), dtype=torch.float64, device=device)
        dist.all_reduce(tensor)
        return dict(zip(numbers, tensor.tolist(), strict=True))

    def first(self, place: int | None, device: torch.device) -> int | None:
        """The smallest number that any process gives; None if none does."""
        if self.count == 1:
            return place
        none = 2**31 - 1
        tensor = torch.tensor([none if place is None else place], device=device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
        return None if int(tensor) == none else int(tensor)


def _can_travel(tensor: torch.Tensor) -> bool:
    return tensor.device.type != "cpu" or "gloo" in str(dist.get_backend())


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())
