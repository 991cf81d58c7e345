"""A sweep from end to end: cells over worker processes, what is done remembered, progress told."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.report.results import write_results
from alora_trainer.experiment.run.stage import Stage
from alora_trainer.experiment.run.sweep.grid import Cell, Grid, plan
from alora_trainer.experiment.run.sweep.work import prepare_worker, work_on

logger = logging.getLogger(__name__)


def run_sweep(
    grids: Sequence[Grid], *, output_dir: str | Path, workers: int = 1, overwrite: bool = False
) -> list[Path]:
    """Run recipes for every combination of values and every seed.

    Called again with the same folder, it goes on where it was stopped: cells that are finished are not begun, and in an
    unfinished one a training goes on from its last checkpoint. What fails does not stop the rest.

    Args:
        grids: one for each recipe.
        output_dir: the sweep's folder; ``seed-N/results.json`` in it has everything that was found with a seed.
        workers: processes to work with; each gets its share of the processor's threads, or OMP_NUM_THREADS of them.
        overwrite: make anew what other settings made there.

    Returns:
        The folders of the runs.

    Raises:
        ALoRAError: a setting cannot be used, the folder holds another sweep, or cells failed (the others are finished then).
    """
    if workers < 1:
        raise ALoRAError(f"--workers {workers} must be at least 1")
    folder = Path(output_dir)
    if folder.exists() and not folder.is_dir():
        raise ALoRAError(f"{folder} is a file: name a folder with --output_dir")
    cells = [cell for grid in grids for cell in plan(grid)]
    parts = {cell.name: _part(cell, folder) for cell in cells}
    outcomes = {}
    for cell in cells:
        parts[cell.name].begin(overwrite=overwrite)
        finished = parts[cell.name].finished()
        if finished is not None:
            outcomes[cell.name] = finished
    progress = _Progress(cells, outcomes)
    failures = _work(cells, parts, outcomes, progress, folder, workers, overwrite)
    if failures:
        first = next(iter(failures))
        raise ALoRAError(
            f"{len(failures)} of {len(cells)} cells of the sweep failed; {first}: {failures[first]} (the same command tries "
            "them again)"
        )
    return sorted({folder / cell.folder for cell in cells})


def _part(cell: Cell, folder: Path) -> Stage:
    resolved = load_recipe(cell.recipe, cell.overrides).resolved()
    described = {key: value for key, value in asdict(cell).items() if key in ("name", "methods", "variant")}
    return Stage(folder / "cells" / cell.name, {"cell": described, "recipe": resolved | {"methods": None}}, "outcome")


def _work(
    cells: list[Cell],
    parts: Mapping[str, Stage],
    outcomes: dict[str, Any],
    progress: _Progress,
    folder: Path,
    workers: int,
    overwrite: bool,
) -> dict[str, BaseException]:
    """Work on all cells that are not done, each after those it needs; what failed, by cell."""
    waiting = [cell for cell in cells if cell.name not in outcomes]
    failures: dict[str, BaseException] = {}
    running: dict[Future[dict[str, Any]], tuple[Cell, float]] = {}
    for name in dict.fromkeys(cell.folder for cell in cells):
        _write_results(name, cells, outcomes, folder)
    if not waiting:
        return failures
    workers = min(workers, len(waiting))
    pool = ProcessPoolExecutor(workers, get_context("spawn"), prepare_worker, (workers,))
    try:
        while waiting or running:
            ready = [cell for cell in waiting if all(name in outcomes or name in failures for name in cell.after)]
            for cell in ready if len(running) < workers else ():
                waiting.remove(cell)
                blocked = [name for name in cell.after if name in failures]
                if blocked:
                    failures[cell.name] = ALoRAError(f"not begun, because {blocked[0]} failed")
                    continue
                running[pool.submit(work_on, cell, str(folder), overwrite)] = (cell, time.monotonic())
                if len(running) == workers:
                    break  # what is submitted cannot be overtaken, and a seed that is begun is to be finished first
            if not running:
                continue
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                cell, begun = running.pop(future)
                error = future.exception()
                if error is not None:
                    failures[cell.name] = error
                    logger.warning(f"{cell.name} failed: {type(error).__name__}: {error}")
                    continue
                parts[cell.name].finish(future.result())
                outcomes[cell.name] = future.result()
                _write_results(cell.folder, cells, outcomes, folder)
                progress.tell(cell, time.monotonic() - begun, min(workers, len(waiting) + len(running)))
    except BaseException:
        _stop(pool)
        raise
    pool.shutdown()
    return failures


def _stop(pool: ProcessPoolExecutor) -> None:
    """End the workers; their trainings go on from the last checkpoint another time."""
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, signal.SIGTERM)


def _write_results(run: str, cells: Sequence[Cell], outcomes: Mapping[str, Any], folder: Path) -> None:
    """results.json of a run folder: the entries of all its cells that are finished."""
    own = [cell for cell in cells if cell.folder == run and cell.name in outcomes]
    entries = {name: entry for cell in own for name, entry in outcomes[cell.name]["entries"].items()}
    if entries:
        overlap = next((found for cell in own if (found := outcomes[cell.name]["overlap"]) is not None), None)
        write_results(folder / run, load_recipe(own[0].recipe, own[0].overrides), entries, overlap)


class _Progress:
    """Says how much is done and how much time is left, by what cells of the same size took."""

    def __init__(self, cells: Sequence[Cell], outcomes: Mapping[str, Any]) -> None:
        self._left = {cell.name: _size(cell) for cell in cells if cell.name not in outcomes}
        self._total = len(cells)
        self._seconds = 0.0
        self._size = 0.0
        if outcomes:
            logger.info(f"sweep: {len(outcomes)} of {self._total} cells are finished already")

    def tell(self, cell: Cell, seconds: float, workers: int) -> None:
        """`cell` took so many seconds; `workers` cells are worked on at once."""
        self._size += self._left.pop(cell.name)
        self._seconds += seconds
        left = self._seconds / self._size * sum(self._left.values()) / max(workers, 1)
        done = self._total - len(self._left)
        logger.info(
            f"sweep: {done} of {self._total} cells done ({cell.name}: {_duration(seconds)})"
            + (f", about {_duration(left)} left" if self._left else "")
        )


def _size(cell: Cell) -> float:
    """A cell's work, in trainings; one that comes first records, too."""
    return len(cell.methods) + (0 if cell.after else 1)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
