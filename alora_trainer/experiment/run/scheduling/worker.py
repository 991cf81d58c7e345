"""A worker process: its share of the processor, what it may print, and that it ends with whoever started it.

This module is the first that a worker imports, and stays light, so that what it sets is set before the libraries read it.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

from alora_trainer.basics.files import replacing
from alora_trainer.basics.output import LineFormatter, configure_output


def prepare_worker(workers: int, gpus: SimpleQueue[str | None]) -> None:
    """Called once in every worker: its share of the threads, a GPU of its own where there are several, and on the screen that
    all share warnings alone.

    Who sets OMP_NUM_THREADS has said already how many threads one process is to have.

    Args:
        workers: how many there are.
        gpus: a GPU for each, as CUDA_VISIBLE_DEVICES names it, or None.
    """
    gpu = gpus.get()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    threading.Thread(target=_end_with_the_scheduler, daemon=True).start()
    signal.signal(signal.SIGINT, _while_idle)
    configure_output()
    for handler in logging.getLogger("alora_trainer").handlers:
        handler.setLevel(logging.WARNING)  # what is of interest beside goes to the scheduler: see `telling`
    import torch  # not above: what `configure_output` sets comes first

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))


def telling(path: Path, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Do the work, and leave in the file `path` what it has said last of its progress, for whoever waits for it."""
    handler = _LastLine(path)
    handler.setFormatter(LineFormatter())
    own = logging.getLogger("alora_trainer")
    own.addHandler(handler)
    idle = signal.getsignal(signal.SIGINT) is _while_idle
    if idle:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return work()
    finally:
        if idle:
            signal.signal(signal.SIGINT, _while_idle)
        own.removeHandler(handler)
        path.unlink(missing_ok=True)


def _while_idle(*_: object) -> None:
    """Ctrl-C where nothing is worked on: the scheduler is told, too, and ends this process."""


class _LastLine(logging.Handler):
    """A file with the last line that was said."""

    def __init__(self, path: Path) -> None:
        super().__init__(logging.INFO)
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        try:
            with replacing(self._path) as partial:
                partial.write_text(self.format(record), encoding="utf-8")
        except OSError:
            self.handleError(record)  # as every handler of a log: no work fails because its progress cannot be told


def _end_with_the_scheduler() -> None:
    """Without the process that started it, a worker would go on writing where the next one for the folder writes, too."""
    scheduler = multiprocessing.parent_process()
    if scheduler is not None:
        scheduler.join()
        os.kill(os.getpid(), signal.SIGTERM)
