"""Pieces of work over workers: each after those that it needs, what is done remembered, progress told.

A sweep's cells are such pieces, and so are the cases of a study; the scheduler knows nothing of either.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.run.scheduling.work_progress import WorkProgress
from alora_trainer.experiment.run.scheduling.worker import telling
from alora_trainer.experiment.run.scheduling.workers import Pool, Workers
from alora_trainer.experiment.run.stage import Stage

logger = logging.getLogger(__name__)

PROGRESS_FILE = "progress.txt"  # in a unit's folder while it is worked on: what it said last
_TICK = 1.0  # seconds between two looks at what is under way


@dataclass(frozen=True)
class WorkUnit:
    """A piece of work that one process does.

    Attributes:
        name: unique among the units.
        memory: the folder that remembers its outcome, and the settings that the outcome depends on.
        work: a call without arguments that can be pickled; its outcome is plain data.
        after: the names of the units that must be finished before; they come earlier in the list.
        size: how much work it is against the others, for the time that is left.
    """

    name: str
    memory: Stage
    work: Callable[[], dict[str, Any]]
    after: tuple[str, ...] = ()
    size: float = 1.0


class Scheduler:
    """Works through units in their order, and remembers what is done.

    Made again with the same units, it goes on where it was stopped: finished units are not begun. What fails does not stop the
    rest, except for what comes after it.

    Attributes:
        outcomes: of the finished units, by name; from the beginning on, those that were finished before.
        failures: of the failed units, by name.

    Args:
        units: the work.
        name: of the whole, for messages, such as "sweep".
        overwrite: make anew what other settings made.
        progress: of a larger whole that this is a part of; None is this one's own.

    Raises:
        ALoRAError: a folder remembers an outcome of other settings, or holds other files.
    """

    def __init__(
        self, units: Sequence[WorkUnit], *, name: str, overwrite: bool = False, progress: WorkProgress | None = None
    ) -> None:
        self.name = name
        self.outcomes: dict[str, dict[str, Any]] = {}
        self.failures: dict[str, BaseException] = {}
        self._units = list(units)
        for unit in self._units:
            unit.memory.check(overwrite=overwrite)  # all of them, before anything is written
        for unit in self._units:
            unit.memory.begin(overwrite=overwrite)
            finished = unit.memory.finished()
            if finished is not None:
                self.outcomes[unit.name] = finished
        self._progress = WorkProgress(name) if progress is None else progress
        self._progress.expect({unit.name: unit.size for unit in self._units}, self.outcomes)

    def work(self, workers: Workers, folder: Path, finished: Callable[[WorkUnit], None] | None = None) -> None:
        """Do all that is not done.

        Args:
            workers: how many units at once, and where.
            folder: of the whole, for what the workers leave beside the units' own folders.
            finished: called with each unit that is finished, its outcome being in `outcomes`.

        Raises:
            ALoRAError: units failed; the message has the first reason. All others are finished then.
        """
        waiting = [unit for unit in self._units if unit.name not in self.outcomes]
        if waiting:
            at_once = min(workers.count, len(waiting))
            with self._progress, workers.pool(at_once, folder) as pool:
                self._work_through(waiting, pool, at_once, finished)
        if self.failures:
            first = next(iter(self.failures))
            raise ALoRAError(
                f"{len(self.failures)} of {len(self._units)} cells of the {self.name} failed; {first}: "
                f"{self.failures[first]} (the same command tries them again)"
            )

    def _work_through(
        self,
        waiting: list[WorkUnit],
        pool: Pool,
        workers: int,
        finished: Callable[[WorkUnit], None] | None,
    ) -> None:
        running: dict[Future[dict[str, Any]], WorkUnit] = {}
        while waiting or running:
            for unit in self._ready(waiting) if len(running) < workers else ():
                waiting.remove(unit)
                blocked = [name for name in unit.after if name in self.failures]
                if blocked:
                    self._fail(unit, ALoRAError(f"not begun, because {blocked[0]} failed"))
                    continue
                told = unit.memory.folder / PROGRESS_FILE
                self._progress.begin(unit.name, told, workers)
                running[pool.submit(partial(telling, told, unit.work))] = unit
                if len(running) == workers:
                    break  # what is submitted cannot be overtaken, and a seed that is begun is to be finished first
            if not running:
                continue
            done, _ = wait(running, timeout=_TICK, return_when=FIRST_COMPLETED)
            self._progress.beat()
            for future in done:
                unit = running.pop(future)
                error = future.exception()
                if error is not None:
                    logger.warning(f"{unit.name} failed: {type(error).__name__}: {error}")
                    self._fail(unit, error)
                    continue
                unit.memory.finish(future.result())
                self.outcomes[unit.name] = future.result()
                if finished is not None:
                    finished(unit)
                self._progress.end(unit.name)

    def _fail(self, unit: WorkUnit, error: BaseException) -> None:
        self.failures[unit.name] = error
        self._progress.end(unit.name, failed=True)

    def _ready(self, waiting: list[WorkUnit]) -> list[WorkUnit]:
        """Those that wait for nothing any more."""
        return [unit for unit in waiting if all(name in self.outcomes or name in self.failures for name in unit.after)]
