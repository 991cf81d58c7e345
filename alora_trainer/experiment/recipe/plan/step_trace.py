"""One training step on fake tensors: shapes without numbers, so that nothing is computed and nothing is held.

What every operation of the model's own code allocates is counted until it is let go, forward and backward, as the allocator
would: no formula for activations that a new architecture or a change in transformers would make wrong.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers.integrations import moe

# In the backward pass recomputed activations hang in reference cycles for a while; without collecting, they count as held.
_COLLECT_EVERY = 25


@dataclass(frozen=True)
class StepTrace:
    """What one pass takes.

    Attributes:
        peak_bytes: the most that is alive at once beyond the weights and buffers; gradients of the adapter included.
        flops: of matrix products and attention, a multiplication and an addition counted as two.
    """

    peak_bytes: int
    flops: int


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, from the operation that makes them to the end of their last tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()
        self._collects = False
        self._operations = 0

    def ignore(self, tensors: Iterator[torch.Tensor]) -> None:
        """Leave out what is there anyway."""
        self._known |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._operations += 1
        if self._collects and self._operations % _COLLECT_EVERY == 0:
            gc.collect()
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage())
        return result

    @contextmanager
    def collecting(self, wanted: bool) -> Iterator[None]:
        """Lets go of reference cycles every few operations. What is there already is not looked at: that would take minutes."""
        if not wanted:
            yield
            return
        gc.collect()
        gc.freeze()
        self._collects = True
        try:
            yield
        finally:
            self._collects = False
            gc.unfreeze()

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def trace_step(
    model: nn.Module,
    *,
    batch_size: int,
    length: int,
    train: bool = True,
    checkpointing: bool = False,
    autocast: torch.dtype | None = None,
) -> StepTrace:
    """Forward and (with `train`) backward of one micro-batch of `batch_size` sequences of `length` tokens.

    Without `train`, what lm-eval does with the logits is in it: their log-softmax.

    Args:
        model: on the meta device; its weights become fake tensors of no size in memory.
        batch_size, length: of the micro-batch.
        train: with gradients of what requires them.
        checkpointing: gradient checkpointing, as the Trainer switches it on.
        autocast: the dtype of mixed precision, if it is on.
    """
    _set_checkpointing(model, checkpointing and train)
    model.train(train)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        _fake_weights(model, mode)
        live = _LiveBytes()
        live.ignore(tensor for tensor in (*model.parameters(), *model.buffers()))
        mixed = torch.autocast("cpu", dtype=autocast) if autocast is not None else nullcontext()
        with live, FlopCounterMode(display=False) as counter, mixed, _experts_of_any_dtype():
            ids = torch.zeros(batch_size, length, dtype=torch.long)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            if train:
                loss = model(**inputs, labels=ids.clone()).loss
                with live.collecting(checkpointing):
                    loss.backward()
            else:
                with torch.no_grad():
                    model(**inputs, use_cache=False).logits.float().log_softmax(-1)
        flops = counter.get_total_flops()
    for parameter in model.parameters():
        parameter.grad = None
    return StepTrace(live.peak, flops)


@contextmanager
def _experts_of_any_dtype() -> Iterator[None]:
    """Of products of all experts at once PyTorch knows shapes without numbers in bfloat16 alone, transformers in any dtype."""
    usable = moe._can_use_grouped_mm
    moe._can_use_grouped_mm = lambda x, weight, offs: weight.dtype == torch.bfloat16 and usable(x, weight, offs)
    try:
        yield
    finally:
        moe._can_use_grouped_mm = usable


def _set_checkpointing(model: Any, wanted: bool) -> None:
    if wanted:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_disable()


def _fake_weights(model: nn.Module, mode: FakeTensorMode) -> None:
    """Put fake tensors on the CPU in the place of the meta ones; what is tied stays tied."""
    made: dict[int, torch.Tensor] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype)
            parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if parameter else empty
        return made[id(tensor)]

    keep = []  # so that no id is given twice
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    keep.append(tensor)
                    tensors[name] = fake(tensor)  # type: ignore[assignment]
