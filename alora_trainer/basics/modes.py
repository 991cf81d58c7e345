"""A model in evaluation or training mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from torch import nn


def evaluation_mode(model: nn.Module) -> AbstractContextManager[None]:
    """Evaluation mode (no dropout) inside the block; see `in_mode`."""
    return in_mode(model, training=False)


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Training or evaluation mode inside the block; after it every module's own mode is what it was.

    Says nothing about gradients, the random state or a cache: these are the caller's.
    """
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, before in modes.items():
            module.training = before
