"""A model whose parameters FSDP2 or ZeRO-3 has spread over processes: what must be minded beside the single weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def gathered(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Inside, parameters that DeepSpeed's ZeRO-3 keeps in pieces are whole on every process, to be read and not written.

    All processes must enter it together. Other parameters stay as they are.
    """
    in_pieces = list(dict.fromkeys(parameter for parameter in parameters if hasattr(parameter, "ds_id")))
    if not in_pieces:
        yield
        return
    from deepspeed import zero

    with zero.GatheredParameters(in_pieces):
        yield


def is_sharded(model: nn.Module) -> bool:
    """Whether parameters of the model are spread over processes, so that a forward pass takes all of these."""
    return any(hasattr(parameter, "device_mesh") or hasattr(parameter, "ds_id") for parameter in model.parameters())


def reshard(model: nn.Module) -> None:
    """Let go of the whole parameters that FSDP2 keeps after a forward pass for a backward pass that may not come.

    They would stand for the pieces in the next forward pass, whatever was written into the pieces meanwhile.
    """
    for module in model.modules():
        give_back = getattr(module, "reshard", None) if hasattr(module, "set_reshard_after_forward") else None
        if give_back is not None:
            give_back()
