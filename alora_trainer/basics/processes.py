"""Several processes: which of them holds which weights' importance, and how what they computed comes together.

Importance is as large as the weights themselves, so each process keeps that of its own weights only: the path integral while
recording, Omega while protecting. What comes out (a penalty's value and gradients, a finished map) is the same on all of
them. Nothing here starts processes; torchrun or accelerate do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from alora_trainer.errors import ALoRAError


class Processes:
    """The processes that train together; one, where nothing was launched.

    Attributes:
        rank: this process's number.
        count: how many there are.
    """

    def __init__(self) -> None:
        self.rank, self.count = place()

    def owners(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """The process that holds each weight's importance: the largest first, each to the process that has least so far.

        Args:
            sizes: elements by weight name.
        """
        loads = [0] * self.count
        owners = {}
        for name in sorted(sizes, key=lambda name: -sizes[name]):
            owner = loads.index(min(loads))
            owners[name] = owner
            loads[owner] += sizes[name]
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


Key = TypeVar("Key")
Value = TypeVar("Value")
Item = TypeVar("Item")


def launched() -> int:
    """How many processes torchrun (or the like) launched; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def place() -> tuple[int, int]:
    """(rank, number of processes) of this process; (0, 1) outside `joined`."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def is_main() -> bool:
    """Whether this process writes and prints."""
    return place()[0] == 0


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that were launched together, and part from them at the end.

    Raises:
        ALoRAError: fewer processes came together than were launched.
    """
    if launched() == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo")
    try:
        if dist.get_world_size() != launched():
            raise ALoRAError(
                f"{launched()} processes were launched and {dist.get_world_size()} came together: start them all "
                "with one torchrun command"
            )
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def main_first() -> Iterator[None]:
    """The main process goes through the block alone, then the others: for what one makes and the others find."""
    rank, count = place()
    if count > 1 and rank > 0:
        dist.barrier()
    try:
        yield
    finally:
        if count > 1 and rank == 0:
            dist.barrier()


def by_main(work: Callable[[], Value]) -> Value:
    """What `work` returns on the main process, which alone does it, on all of them; it can be pickled.

    Raises:
        Exception: what it raises there, on all of them, so that none waits for the others.
    """
    rank, count = place()
    if count == 1:
        return work()
    said: list[Any] = [None, None]
    if rank == 0:
        try:
            said = [work(), None]
        except Exception as error:
            said = [None, error]
    dist.broadcast_object_list(said, src=0)
    if said[1] is not None:
        raise said[1]
    return said[0]  # type: ignore[no-any-return]


def own_share(items: Iterable[Item]) -> Iterator[Item]:
    """Every n-th of the items, beginning with this process's rank."""
    rank, count = place()
    for number, item in enumerate(items):
        if number % count == rank:
            yield item


def together(own: Mapping[Key, Value]) -> dict[Key, Value]:
    """What all processes have, by key."""
    _, count = place()
    if count == 1:
        return dict(own)
    parts: list[Any] = [None] * count
    dist.all_gather_object(parts, dict(own))
    return {key: value for part in parts for key, value in part.items()}
