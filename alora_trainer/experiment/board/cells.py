"""A board as pieces of work: the base model and every trial on validation, the chosen ones again on test items, by seed."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from alora_trainer.basics.progress import ShownProgress
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.board.board_file import Board, BoardTask
from alora_trainer.experiment.board.rows import BoardRow, Trial
from alora_trainer.experiment.methods import Method, get_method
from alora_trainer.experiment.run.sweep import Cell

logger = logging.getLogger(__name__)

BASE = "base"


@dataclass(frozen=True)
class Place:
    """One model and one task of a board, with one seed: all that is trained there shares a run folder.

    Attributes:
        board: the board.
        model: its name.
        task: what is learned.
        seed: of everything.
        final: on test items; else on validation.
    """

    board: Board
    model: str
    task: BoardTask
    seed: int
    final: bool

    @property
    def folder(self) -> str:
        """Of the run, relative to the board's."""
        return f"{self.model}/{self.task.name}/{'final' if self.final else 'validation'}/seed-{self.seed}"

    @property
    def overrides(self) -> dict[str, str]:
        """Over the task's recipe, of all that is trained here."""
        board, task = self.board, self.task
        own = board.final if self.final else {**task.validation, **board.validation}
        return {**board.settings, **task.settings, **own, "model": board.models[self.model], "seed": str(self.seed)}

    @property
    def base(self) -> Cell:
        """The untouched model, which also prepares the data."""
        return self._cell(BASE, BASE, {}, None, ())

    def trained(self, row: BoardRow, trial: Trial, after: tuple[str, ...] = ()) -> Cell:
        """A row's method under a trial's settings."""
        variant = row.variant(trial)
        return self._cell(variant, row.method, row.overrides(trial), variant, (self.base.name, *after))

    def _cell(
        self, name: str, method: str, overrides: dict[str, str], variant: str | None, after: tuple[str, ...]
    ) -> Cell:
        return Cell(
            str(self.task.recipe),
            re.sub(r"/", ",", f"{self.folder},{name}"),
            self.folder,
            self.overrides | overrides | {"methods": method},
            (method,),
            variant,
            after,
        )

    def cells(self, wanted: Iterable[tuple[BoardRow, Trial]], made: dict[str, str]) -> Iterator[Cell]:
        """The base model's cell and those of trials, in an order in which they can be worked on.

        What several methods are held by is made by the first that needs it; the others come after it.

        Args:
            wanted: rows with one of their trials each.
            made: what is made -> the name of the cell that makes it; gets what is new.
        """
        yield self.base
        for row, trial in wanted:
            needed = _needed(get_method(row.method))
            cell = self.trained(row, trial)
            first = cell.name if needed is None else made.setdefault(f"{self.folder}:{needed}", cell.name)
            yield cell if first == cell.name else self.trained(row, trial, (first,))


def _needed(method: Method) -> str | None:
    """What must have been made before this method's training, by a name that those who share it have in common."""
    if method.measured is not None:
        return f"{method.measured.folder} {method.parameterization.value}"
    if method.needs_recording:
        return method.name if method.records_alone else "record"
    return None


def validation_places(board: Board) -> list[Place]:
    """Where the trials are."""
    return [Place(board, model, task, board.validation_seed, False) for model in board.models for task in board.tasks]


def final_places(board: Board, place: Place) -> list[Place]:
    """Where the finals of a validation's trials are, a place a seed."""
    return [Place(board, place.model, place.task, seed, True) for seed in board.seeds]


def check_cells(board: Board, rows: Sequence[BoardRow], folder: Path, *, overwrite: bool = False) -> None:
    """Look at all that a board will do, before anything is trained or written.

    Every trial is checked on validation, and a trial of every row on the test: its finals differ from it in the values of the
    grid, which are looked at with the trials.

    Raises:
        ALoRAError: a recipe, model, task, method or setting cannot be used (the message says which row), or the folder holds
            other work.
    """
    places = validation_places(board)
    cells = len(places) * sum(len(row.trials) + 1 for row in rows)
    with ShownProgress(f"looking at all that {board.name} will do", cells, logger, unit="trainings") as progress:
        for place in places:
            final = final_places(board, place)[0]
            place.base.check(folder, overwrite=overwrite)
            final.base.check(folder, overwrite=overwrite)
            for row in rows:
                trials = [place.trained(row, trial) for trial in row.trials]
                for cell in [*trials, final.trained(row, row.trials[0])]:
                    _check(cell, row, folder, overwrite)
                    progress.advance()


def _check(cell: Cell, row: BoardRow, folder: Path, overwrite: bool) -> None:
    try:
        cell.check(folder, overwrite=overwrite)
    except ALoRAError as error:
        raise ALoRAError(f"row {row.name}: {error}") from error
