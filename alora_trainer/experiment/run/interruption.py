"""Ctrl-C in a training: the step that is under way is finished and saved, so that nothing is lost."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import Trainer, TrainerCallback

from alora_trainer.basics.processes import launched

logger = logging.getLogger(__name__)


class _Stop(TrainerCallback):
    """Once `wanted`, saves a checkpoint after the next step and ends the training there."""

    def __init__(self) -> None:
        self.wanted = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if self.wanted:
            control.should_save = control.should_training_stop = True
        return control


@contextmanager
def stopping_whole(trainer: Trainer) -> Iterator[None]:
    """Let the first Ctrl-C (SIGINT) save a checkpoint before it ends the training; a second one ends it at once.

    Of several processes each would stop at a step of its own, and wait for the others for ever: there, and in a thread, which
    is told of no signal, everything is as without this.

    Raises:
        KeyboardInterrupt: after the checkpoint was saved.
    """
    before = signal.getsignal(signal.SIGINT)
    if launched() > 1 or threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return
    stop = _Stop()
    trainer.add_callback(stop)

    def interrupted(*_: Any) -> None:
        stop.wanted = True
        signal.signal(signal.SIGINT, before)
        logger.warning("stopping after this step, with a checkpoint (Ctrl-C again stops at once, without)")

    signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        trainer.remove_callback(stop)
    if stop.wanted and trainer.state.global_step < trainer.state.max_steps:
        raise KeyboardInterrupt
