"""A board from end to end: trials, the choice among them, finals, and the JSON of all that is finished."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alora_trainer.basics.folder_lock import check_folder
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.board.board_file import Board
from alora_trainer.experiment.board.board_json import BOARD_FILE, write_board, write_costs
from alora_trainer.experiment.board.cells import Place, check_cells, final_places, validation_places
from alora_trainer.experiment.board.collect import PlaceFound, collected
from alora_trainer.experiment.board.rows import BoardRow
from alora_trainer.experiment.board.summary import Rules, choose_finals
from alora_trainer.experiment.board.taken_over import FinishedRows
from alora_trainer.experiment.report.method_result import MethodResult
from alora_trainer.experiment.run.scheduling.scheduler import Scheduler
from alora_trainer.experiment.run.scheduling.work_progress import WorkProgress
from alora_trainer.experiment.run.scheduling.workers import Workers
from alora_trainer.experiment.run.sweep import Cell
from alora_trainer.experiment.run.sweep.cell import cell_unit, results_of_cell
from alora_trainer.experiment.run.working_folder import working_in

logger = logging.getLogger(__name__)


def run_board(
    board: Board,
    *,
    output_dir: str | Path,
    workers: int | Workers = 1,
    overwrite: bool = False,
    only: Sequence[str] | None = None,
    resamples: int = 9999,
    finished: str | Path | None = None,
) -> Path:
    """Run a board, row by row, and write ``board.json`` anew after each.

    The reference comes first, then the rows in the file's order, the trials of each beside the finals of the one before:
    stopped half-way, whole rows are there, and the JSON says what is not. Called again with the same folder, it goes on where
    it was stopped. What fails does not stop other rows.

    Args:
        board: from `read_board`.
        output_dir: the board's folder.
        workers: processes to work with, or jobs of Slurm (see `Workers`); the result does not depend on how many there are.
        overwrite: make anew what other settings made there.
        only: names of rows to run; the reference is always run.
        resamples: of the bootstrap over items.
        finished: an earlier ``board.json`` of this board, or of one in the same setting, whose finished rows are taken over
            and not trained (see `FinishedRows`); the reference's finals are trained again, and must come out as they are there.

    Returns:
        The path of ``board.json``.

    Raises:
        ALoRAError: something in the board cannot be done (nothing was written then), or trainings failed (all other rows are
            finished and in the JSON then).
    """
    where = Workers(workers) if isinstance(workers, int) else workers
    earlier = None if finished is None else FinishedRows(board, Path(finished))
    rows = sorted(rows_to_train(board, only, earlier), key=lambda row: row.name != board.reference)
    folder = Path(output_dir)
    check_folder(folder)
    places = [(place, final_places(board, place)) for place in validation_places(board)]
    runs = [one.folder for place, finals in places for one in (place, *finals)]
    with working_in(folder, *(folder / run for run in runs)):
        check_cells(board, rows, folder, overwrite=overwrite)
        work = _Work(board, folder, where, overwrite, Rules(
            board.reference, board.against, [row.name for row in board.rows], board.shares, board.points, board.seeds, resamples
        ), earlier)  # fmt: skip
        work.expect(places, rows)
        at_once = math.ceil(where.count / board.trials)
        # Until the reference has come out as it did elsewhere, no other row is begun.
        alone = at_once if earlier is None else 1
        groups = [rows[:alone], *(rows[start : start + at_once] for start in range(alone, len(rows), at_once))]
        for group, following in zip(groups, [*groups[1:], []], strict=True):
            work.do(places, group, [] if earlier is not None and group is groups[0] else following)
            work.write(places)
    if work.failures:
        first = next(iter(work.failures))
        raise ALoRAError(
            f"{len(work.failures)} trainings of the board failed; {first}: {work.failures[first]} (the rest is in "
            f"{folder / BOARD_FILE}; the same command tries them again)"
        )
    return folder / BOARD_FILE


def rows_to_train(board: Board, only: Sequence[str] | None, finished: FinishedRows | None) -> list[BoardRow]:
    """The rows that are asked for, in the board's order, without those that were finished elsewhere; with the reference."""
    rows = list(board.rows) if only is None else board.only(list(only))
    done = set() if finished is None else {*finished.names} - {board.reference}
    return [row for row in rows if row.name not in done]


class _Work:
    """The work on a board: what is finished, by cell, and which rows are whole."""

    def __init__(
        self,
        board: Board,
        folder: Path,
        workers: Workers,
        overwrite: bool,
        rules: Rules,
        finished: FinishedRows | None = None,
    ) -> None:
        self.finished = finished
        self.board, self.folder, self.workers, self.overwrite, self.rules = board, folder, workers, overwrite, rules
        self.outcomes: dict[str, dict[str, Any]] = {}
        self.failures: dict[str, BaseException] = {}
        self._progress = WorkProgress("board")
        self._makers: dict[str, str] = {}
        self._found: dict[str, PlaceFound] = {}

    def expect(self, places: Sequence[tuple[Place, list[Place]]], rows: Sequence[BoardRow]) -> None:
        """All that these rows may take, so that what is told of the progress is of the whole board."""
        bases = [one.base for place, finals in places for one in (place, *finals)]
        untried = [row for row in rows if not self._is_tuned(row)]
        trials = [place.trained(row, trial) for place, _ in places for row in untried for trial in row.trials]
        self._progress.expect({cell.name: cell.size for cell in (*bases, *trials)})
        self._progress.later = self._most_finals(places, rows)

    def _most_finals(self, places: Sequence[tuple[Place, list[Place]]], rows: Sequence[BoardRow]) -> int:
        each = min(self.rules.points or self.board.trials, self.board.trials)
        return len(rows) * each * sum(len(finals) for _, finals in places)

    def do(
        self, places: Sequence[tuple[Place, list[Place]]], rows: Sequence[BoardRow], following: Sequence[BoardRow] = ()
    ) -> None:
        """Train some rows on all models and tasks: their trials, and those of them that are chosen.

        Args:
            places: each model and task on validation, and on the test with every seed.
            rows: which rows.
            following: the rows after these, whose trials are trained beside the chosen ones: no worker waits for the choice.
        """
        tuned = [row for row in rows if self._is_tuned(row)]
        bases = [one.base for place, finals in places for one in (place, *finals)]
        self._train([*bases, *self._trials(places, rows)])
        chosen: list[Cell] = []
        for place, finals in places:
            found = self._found_at(place, finals)
            whole = [
                row
                for row in rows
                if row not in tuned and self._finished(place.trained(row, trial) for trial in row.trials)
            ]
            for row in whole:
                found.add_trials(row, [self._result(place.trained(row, trial)) for trial in row.trials])
            reference = found.rows.get(self.board.reference)
            if reference is None:
                raise ALoRAError(f"the reference {self.board.reference} could not be trained: {self._first_failure()}")
            for row in whole:
                found.rows[row.name].chosen = choose_finals(found.rows[row.name], reference, self.rules)
            wanted = [(row, row.trials[at]) for row in (*tuned, *whole) for at in found.rows[row.name].chosen]
            chosen += [cell for final in finals for cell in final.cells(wanted, self._makers)]
        self._progress.later -= self._most_finals(places, rows)
        self._train([*chosen, *self._trials(places, following)])
        for place, finals in places:
            self._take_finals(self._found_at(place, finals), finals, rows)

    def _is_tuned(self, row: BoardRow) -> bool:
        """Whether its trials were finished elsewhere."""
        return self.finished is not None and row.name in self.finished.names

    def _trials(self, places: Sequence[tuple[Place, list[Place]]], rows: Sequence[BoardRow]) -> Iterator[Cell]:
        trials = [(row, trial) for row in rows if not self._is_tuned(row) for trial in row.trials]
        for place, _ in places:
            yield from place.cells(trials, self._makers)

    def _take_finals(self, found: PlaceFound, finals: Sequence[Place], rows: Sequence[BoardRow]) -> None:
        for row in rows:
            own = found.rows.get(row.name)
            if own is None:
                continue
            for at in own.chosen:
                for final in finals:
                    cell = final.trained(row, row.trials[at])
                    if self._finished([cell]):
                        found.add_final(own, at, final, self._result(cell), self._folder_of(cell))

    def _found_at(self, place: Place, finals: Sequence[Place]) -> PlaceFound:
        if place.folder not in self._found:
            if not self._finished(one.base for one in (place, *finals)):
                raise ALoRAError(f"the base model could not be scored: {self._first_failure()}")
            self._found[place.folder] = PlaceFound(
                place, {one: (self._result(one.base), self._folder_of(one.base)) for one in (place, *finals)}
            )
            if self.finished is not None:
                self._found[place.folder].take_over(self.finished)
        return self._found[place.folder]

    def _train(self, cells: Iterable[Cell]) -> None:
        """Those that were not trained yet; what failed is not tried twice."""
        tried = {*self.outcomes, *self.failures}
        wanted = {cell.name: cell for cell in cells if cell.name not in tried}
        units = [cell_unit(cell, self.folder, overwrite=self.overwrite) for cell in wanted.values()]
        # What was done before is not waited for.
        units = [replace(unit, after=tuple(name for name in unit.after if name in wanted)) for unit in units]
        scheduler = Scheduler(units, name="board", overwrite=self.overwrite, progress=self._progress)
        try:
            scheduler.work(self.workers, self.folder)
        except ALoRAError:
            if not scheduler.failures:
                raise
        self.outcomes |= scheduler.outcomes
        self.failures |= scheduler.failures

    def _finished(self, cells: Iterable[Cell]) -> bool:
        return all(cell.name in self.outcomes for cell in cells)

    def _result(self, cell: Cell) -> MethodResult:
        # The method's own; a recipe may have its adapter scored at other scales, too.
        return next(iter(results_of_cell(self.outcomes[cell.name]).values()))

    def _folder_of(self, cell: Cell) -> Path:
        return self.folder / cell.folder / str(next(iter(self.outcomes[cell.name]["entries"])))

    def _first_failure(self) -> str:
        return "; ".join(f"{name}: {error}" for name, error in list(self.failures.items())[:1])

    def write(self, places: Sequence[tuple[Place, list[Place]]]) -> None:
        """Write what is finished."""
        found = [self._found[place.folder] for place, _ in places]
        write_board(self.folder, self.board, collected(found, self.board, self.rules))
        write_costs(self.folder, self.outcomes)
        logger.info(f"board: written: {self.folder / BOARD_FILE}")
