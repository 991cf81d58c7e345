"""Ctrl-C in a training: the step that is under way is finished and saved, so that nothing is lost."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from transformers import Trainer, TrainerCallback

from alora_trainer.basics.processes import is_main, launched

logger = logging.getLogger(__name__)

# A terminal tells all processes of a command, and torchrun or the scheduler of a sweep tells their own once more: that is one
# Ctrl-C. A person's second one comes later.
ONE_INTERRUPTION = 2.0


class _Stop(TrainerCallback):
    """Once `wanted`, saves a checkpoint after the next step and ends the training there, in all processes at the same step."""

    def __init__(self) -> None:
        self.wanted = False
        # In host memory, whatever the gradients travel by: to ask a GPU after every step would stop it.
        self._group: Any = dist.new_group(backend="gloo") if launched() > 1 and dist.is_initialized() else None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if self._agreed():
            control.should_save = control.should_training_stop = True
        return control

    def _agreed(self) -> bool:
        if self._group is not None:
            wanted = torch.tensor([int(self.wanted)])
            dist.all_reduce(wanted, op=dist.ReduceOp.MAX, group=self._group)
            self.wanted = bool(wanted)
        return self.wanted

    def close(self) -> None:
        if self._group is not None and dist.is_initialized():
            dist.destroy_process_group(self._group)


@contextmanager
def stopping_whole(trainer: Trainer) -> Iterator[None]:
    """Let the first Ctrl-C (SIGINT) save a checkpoint before it ends the training; a second one ends it at once.

    Of several processes all stop after the same step, whichever of them was told. In a thread, which is told of no signal,
    everything is as without this.

    Raises:
        KeyboardInterrupt: after the checkpoint was saved.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return
    stop = _Stop()
    trainer.add_callback(stop)
    first: list[float] = []

    def interrupted(*_: Any) -> None:
        stop.wanted = True
        if not first:
            first.append(time.monotonic())
            if is_main():
                logger.warning("stopping after this step, with a checkpoint (Ctrl-C again stops at once, without)")
        elif time.monotonic() - first[0] > ONE_INTERRUPTION:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        trainer.remove_callback(stop)
        stop.close()
    if stop.wanted and trainer.state.global_step < trainer.state.max_steps:
        raise KeyboardInterrupt
