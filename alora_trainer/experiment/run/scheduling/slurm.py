"""Pieces of work as jobs of Slurm, by `submitit`: each a process of its own on a machine of the cluster's choice."""

from __future__ import annotations

import logging
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any

from alora_trainer.basics.output import configure_output
from alora_trainer.errors import ALoRAError

logger = logging.getLogger(__name__)

_JOBS_FILE = "submitted.txt"
_POLL_SECONDS = {"slurm": 5.0, "local": 0.1}


class SlurmJobs:
    """Submits work, and says when it is done; jobs that are under way are cancelled if an exception ends it.

    What is submitted is noted, so that jobs that outlived whoever submitted them are cancelled by the next one: they would
    write where its own do.

    Args:
        folder: for notes, pickled work and the jobs' output; the cluster must share its file system, and that of the work.
        parameters: of `submitit.AutoExecutor.update_parameters`.
        cluster: "slurm", or "local": processes of this machine in the jobs' place, to try it.

    Raises:
        ALoRAError: `submitit` is not installed, there is no Slurm here, or a parameter is none of submitit's.
    """

    def __init__(self, folder: Path, parameters: Mapping[str, Any], *, cluster: str = "slurm") -> None:
        try:
            import submitit
        except ImportError as error:
            raise ALoRAError("--slurm needs submitit: pip install submitit (the package's extra slurm)") from error
        if cluster == "slurm" and shutil.which("sbatch") is None:
            raise ALoRAError(
                "--slurm: there is no sbatch here; run this on a machine that may submit jobs, or without --slurm"
            )
        folder.mkdir(parents=True, exist_ok=True)
        self._executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        try:
            self._executor.update_parameters(name="alora", **parameters)
        except (NameError, TypeError, ValueError) as error:
            raise ALoRAError(f"--slurm: {error}") from error
        self._notes = folder / _JOBS_FILE
        self._seconds = _POLL_SECONDS[cluster]
        self._running: dict[Future[Any], Any] = {}
        self._ends = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._cancel_earlier(folder, submitit.SlurmJob if cluster == "slurm" else submitit.LocalJob)

    def __enter__(self) -> SlurmJobs:
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ends.set()
        self._watcher.join()
        for job in self._running.values():
            job.cancel()
        self._notes.unlink(missing_ok=True)

    def submit(self, work: Callable[[], Any], /) -> Future[Any]:
        """Submit a piece of work; its outcome, or why there is none, comes with the future."""
        job = self._executor.submit(_in_job, work)
        with self._notes.open("a", encoding="utf-8") as notes:
            notes.write(f"{job.job_id}\n")
        future: Future[Any] = Future()
        self._running[future] = job
        return future

    def _cancel_earlier(self, folder: Path, of_cluster: Callable[[Path, str], Any]) -> None:
        if not self._notes.is_file():
            return
        for name in self._notes.read_text(encoding="utf-8").split():
            job = of_cluster(folder, name)
            if not job.done():
                logger.warning(f"the job {name} of an earlier call is still there, and is cancelled")
                job.cancel()
        self._notes.unlink()

    def _watch(self) -> None:
        while not self._ends.wait(self._seconds):
            for future, job in list(self._running.items()):
                if job.done():
                    del self._running[future]
                    _settle(future, job)


def _in_job(work: Callable[[], Any]) -> tuple[Any, str | None]:
    """In the job: the work's outcome, or the reason that it gave for having none."""
    configure_output()
    try:
        return work(), None
    except ALoRAError as error:
        return None, str(error)


def _settle(future: Future[Any], job: Any) -> None:
    try:
        outcome, reason = job.result()
    except (
        Exception
    ) as error:  # whatever ended the job: out of time or memory, a node that failed, an error in the work
        future.set_exception(
            ALoRAError(f"its job {job.job_id} failed: {_reason(str(error))} (its output: {job.paths.stderr})")
        )
        return
    if reason is not None:
        future.set_exception(ALoRAError(reason))
    else:
        future.set_result(outcome)


def _reason(message: str) -> str:
    """The line that says it: of a traceback, which submitit puts between two rules, the last; else the first."""
    parts = [part.strip().splitlines() for part in re.split(r"^-{5,}$", message, flags=re.MULTILINE)]
    if len(parts) > 2 and parts[1]:
        return parts[1][-1]
    return parts[0][0] if parts[0] else "it does not say why"
