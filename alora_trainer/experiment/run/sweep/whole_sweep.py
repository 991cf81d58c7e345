"""A sweep from end to end: the cells of its grids over worker processes, and the results of every run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alora_trainer.basics.folder_lock import check_folder
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.report.results import write_results
from alora_trainer.experiment.run.scheduling.scheduler import Scheduler
from alora_trainer.experiment.run.scheduling.workers import Workers
from alora_trainer.experiment.run.sweep.cell import Cell, cell_unit, results_of_cell
from alora_trainer.experiment.run.sweep.grid import Grid, cells_of
from alora_trainer.experiment.run.working_folder import working_in


def run_sweep(
    grids: Sequence[Grid], *, output_dir: str | Path, workers: int | Workers = 1, overwrite: bool = False
) -> list[Path]:
    """Run recipes for every combination of values and every seed.

    Called again with the same folder, it goes on where it was stopped: cells that are finished are not begun, and in an
    unfinished one a training goes on from its last checkpoint. What fails does not stop the rest.

    Args:
        grids: one for each recipe.
        output_dir: the sweep's folder; ``seed-N/results.json`` in it has everything that was found with a seed.
        workers: processes to work with, each with its share of the processor's threads (or OMP_NUM_THREADS of them) and of the
            GPUs; or jobs of Slurm (see `Workers`).
        overwrite: make anew what other settings made there.

    Returns:
        The folders of the runs.

    Raises:
        ALoRAError: a setting cannot be used, the folder holds another sweep, or cells failed (the others are finished then).
    """
    where = Workers(workers) if isinstance(workers, int) else workers
    folder = Path(output_dir)
    check_folder(folder)
    cells = {cell.name: cell for grid in grids for cell in cells_of(grid)}
    runs = sorted({cell.folder for cell in cells.values()})
    with working_in(folder, *(folder / run for run in runs)):
        for cell in cells.values():
            cell.check(folder, overwrite=overwrite)
        units = [cell_unit(cell, folder, overwrite=overwrite) for cell in cells.values()]
        scheduler = Scheduler(units, name="sweep", overwrite=overwrite)
        for run in runs:
            _write_run(run, cells.values(), scheduler.outcomes, folder)
        scheduler.work(
            where, folder, lambda unit: _write_run(cells[unit.name].folder, cells.values(), scheduler.outcomes, folder)
        )
    return [folder / run for run in runs]


def _write_run(run: str, cells: Iterable[Cell], outcomes: Mapping[str, Any], folder: Path) -> None:
    """results.json of a run folder: the entries of all its cells that are finished."""
    own = [cell for cell in cells if cell.folder == run and cell.name in outcomes]
    entries = {name: result for cell in own for name, result in results_of_cell(outcomes[cell.name]).items()}
    if entries:
        overlap = next((found for cell in own if (found := outcomes[cell.name]["overlap"]) is not None), None)
        write_results(folder / run, load_recipe(own[0].recipe, own[0].overrides), entries, overlap)
