"""A model whose parameters FSDP2 has spread over processes: what must be minded beside the single weights."""

from __future__ import annotations

from torch import nn


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 has spread parameters of the model over processes, so that a forward pass takes all of these."""
    return any(hasattr(parameter, "device_mesh") for parameter in model.parameters())


def reshard(model: nn.Module) -> None:
    """Let go of the whole parameters that FSDP2 keeps after a forward pass for a backward pass that may not come.

    They would stand for the pieces in the next forward pass, whatever was written into the pieces meanwhile.
    """
    for module in model.modules():
        give_back = getattr(module, "reshard", None) if hasattr(module, "set_reshard_after_forward") else None
        if give_back is not None:
            give_back()
