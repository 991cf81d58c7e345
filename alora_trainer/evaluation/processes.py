"""Evaluation in several processes (torchrun): every process scores its share of the batches, and all get all the answers.

Only Python objects travel, by gloo, so that the same code serves CPUs and GPUs. Which batches there are does not depend on
the number of processes, so neither do the numbers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from alora_trainer.errors import ALoRAError

Key = TypeVar("Key")
Value = TypeVar("Value")
Item = TypeVar("Item")


def launched() -> int:
    """How many processes torchrun (or the like) launched; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def place() -> tuple[int, int]:
    """(rank, number of processes) of this process; (0, 1) outside `joined`."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
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
    from torch import distributed

    if launched() == 1 or distributed.is_initialized():
        yield
        return
    distributed.init_process_group("gloo")
    try:
        if distributed.get_world_size() != launched():
            raise ALoRAError(
                f"{launched()} processes were launched and {distributed.get_world_size()} came together: start them all "
                "with one torchrun command"
            )
        yield
    finally:
        distributed.destroy_process_group()


@contextmanager
def main_first() -> Iterator[None]:
    """The main process goes through the block alone, then the others: for what one makes and the others find."""
    from torch import distributed

    rank, count = place()
    if count > 1 and rank > 0:
        distributed.barrier()
    try:
        yield
    finally:
        if count > 1 and rank == 0:
            distributed.barrier()


def own_share(items: Iterable[Item]) -> Iterator[Item]:
    """Every n-th of the items, beginning with this process's rank."""
    rank, count = place()
    for number, item in enumerate(items):
        if number % count == rank:
            yield item


def together(own: Mapping[Key, Value]) -> dict[Key, Value]:
    """What all processes have, by key."""
    from torch import distributed

    _, count = place()
    if count == 1:
        return dict(own)
    parts: list[Any] = [None] * count
    distributed.all_gather_object(parts, dict(own))
    return {key: value for part in parts for key, value in part.items()}
