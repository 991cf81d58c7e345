"""A worker process: its share of the processor, what it may print, and that it ends with whoever started it.

This module is the first that a worker imports, and stays light, so that what it sets is set before the libraries read it.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading

from alora_trainer.basics.output import configure_output


def prepare_worker(workers: int) -> None:
    """Called once in every worker: as many threads as are its share, and only warnings on the screen that all share.

    Who sets OMP_NUM_THREADS has said already how many threads one process is to have.

    Args:
        workers: how many there are.
    """
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
