"""A worker process: its share of the processor, what it may print, and that it ends with whoever started it.

This module is the first that a worker imports, and stays light, so that what it sets is set before the libraries read it.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from multiprocessing.queues import SimpleQueue

from alora_trainer.basics.output import configure_output


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
    configure_output()
    logging.getLogger("alora_trainer").setLevel(logging.WARNING)
    import torch  # not above: what `configure_output` sets comes first

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))


def _end_with_the_scheduler() -> None:
    """Without the process that started it, a worker would go on writing where the next one for the folder writes, too."""
    scheduler = multiprocessing.parent_process()
    if scheduler is not None:
        scheduler.join()
        os.kill(os.getpid(), signal.SIGTERM)
