"""Where pieces of work are done, and how many at once: in processes of this machine, or as jobs of Slurm."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

import torch

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.run.scheduling.slurm import SlurmJobs
from alora_trainer.experiment.run.scheduling.worker import prepare_worker

logger = logging.getLogger(__name__)

_PATIENCE = 30.0  # seconds that an interrupted step and its checkpoint may take: as many as torchrun grants


class Pool(Protocol):
    """What work is given to."""

    def submit(self, work: Callable[[], Any], /) -> Future[Any]: ...


@dataclass(frozen=True)
class Workers:
    """How many pieces of work are done at once, and where.

    Attributes:
        count: at once. Processes of this machine get each its share of the processor's threads (or OMP_NUM_THREADS of them)
            and, where there are several GPUs, one of these.
        slurm: submit each piece as a job of its own, with these parameters of `submitit` (``timeout_min``,
            ``slurm_partition``, ``gpus_per_node``, ``cpus_per_task``, ``mem_gb`` ...); None for processes of this machine.

    Raises:
        ALoRAError: `count` is less than 1.
    """

    count: int = 1
    slurm: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ALoRAError(f"--workers {self.count} must be at least 1")

    @contextmanager
    def pool(self, most: int, folder: Path) -> Iterator[Pool]:
        """For at most so many pieces at once; what is under way ends with the block if an exception leaves it.

        Args:
            most: as many as there will be at once.
            folder: where jobs are noted and write their output.

        Raises:
            ALoRAError: there is no Slurm here, `submitit` is not installed, or a parameter is none of its own.
        """
        if self.slurm is not None:
            with SlurmJobs(folder / "slurm", self.slurm) as jobs:
                yield jobs
        else:
            with _processes(min(self.count, most)) as processes:
                yield processes


@contextmanager
def _processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes; if the block is left by an exception, they end with it."""
    # Read when tqdm is imported, which a worker may do before anything of ours runs in it.
    before = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    context = get_context("spawn")
    shares = context.SimpleQueue()
    for number in range(count):
        shares.put(_gpu(number))
    pool = ProcessPoolExecutor(count, context, prepare_worker, (count, shares))
    try:
        yield pool
    except KeyboardInterrupt:
        _interrupt(pool)
        raise
    except BaseException:
        _stop(pool)
        raise
    finally:
        if before is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = before
    pool.shutdown()


def _gpu(number: int) -> str | None:
    """The GPU of a worker, as CUDA_VISIBLE_DEVICES has it: one each, in turn; None where there are not several."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        gpus = [str(place) for place in range(torch.cuda.device_count())]
    else:
        gpus = [place.strip() for place in named.split(",")]
    return gpus[number % len(gpus)] if len(gpus) > 1 else None


def _interrupt(pool: ProcessPoolExecutor) -> None:
    """Let the workers' trainings finish their steps and save them, and end those that do not; Ctrl-C again ends all at once."""
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    logger.warning("waiting until what is under way has saved a checkpoint (Ctrl-C again stops at once, without)")
    end = time.monotonic() + _PATIENCE
    try:
        for process in processes:
            _signal(process, signal.SIGINT)
        for process in processes:
            process.join(max(end - time.monotonic(), 0))
    except KeyboardInterrupt:
        logger.warning("stopping at once")
    finally:
        _terminate(processes)


def _stop(pool: ProcessPoolExecutor) -> None:
    """End the workers; their trainings go on from the last checkpoint another time."""
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    _terminate(processes)


def _terminate(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        _signal(process, signal.SIGTERM)


def _signal(process: BaseProcess, number: signal.Signals) -> None:
    """Send a signal to a worker, if it has not ended; the pool's own thread waits for it too, and may be first to know."""
    if process.is_alive() and process.pid is not None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)
