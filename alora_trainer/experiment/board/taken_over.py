"""Rows that were finished elsewhere: what an earlier ``board.json`` of the same board has need not be trained again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.board.board_file import Board
from alora_trainer.experiment.board.board_json import read_board_json
from alora_trainer.experiment.board.comparisons import KnownComparisons
from alora_trainer.experiment.board.rows import BoardRow
from alora_trainer.experiment.board.summary import RowFound
from alora_trainer.experiment.report.results import environment

# Keys of a board file that no training depends on.
_OF_PEOPLE = ("name", "title", "rows", "published", "left_out", "against")
# What a comparison found before it was corrected for how many there are.
_TESTED = ("difference", "low", "high", "p", "units")


class FinishedRows:
    """The rows of an earlier ``board.json`` that are whole, checked against the board that goes on.

    The reference's finals are trained again all the same, and must come out as they are there, number for number: that is what
    shows that code, libraries and processor give here what they gave there, so that the rows may stand in one table.

    Args:
        board: what is run now.
        path: the earlier ``board.json``, or its folder.

    Raises:
        ALoRAError: the file is none; what its trainings depend on, or the versions of its libraries, are others.
    """

    def __init__(self, board: Board, path: Path) -> None:
        content = read_board_json(path, trainings_only=True)
        self.path, self._board, self._schema = path, board, content["schema"]
        _check_same(board, content, path)
        self._results = {(one["model"], one["task"]): one for one in content["results"]}
        places = {(model, task.name) for model in board.models for task in board.tasks}
        if set(self._results) != places:
            raise ALoRAError(f"{path} is of other models or tasks than {board.path}: its rows cannot be taken over")
        missing = {name for one in self._results.values() for name in one["not_finished"]}
        written = content["written"]["rows"]
        self.names = [
            row.name
            for row in board.rows
            if row.name in written and row.name not in missing and written[row.name] == board.written["rows"][row.name]
        ]
        if board.reference not in self.names:
            raise ALoRAError(f"{path} has no finished row {board.reference}, by which it is seen whether it fits")

    def rows(self, model: str, task: str) -> list[RowFound]:
        """Those of one model and task; the reference with its trials alone."""
        result = self._results[model, task]
        found = [_row_found(self._board.row(name), result, self.path) for name in self.names]
        next(row for row in found if row.name == self._board.reference).finals.clear()
        return found

    def known(self, model: str, task: str) -> KnownComparisons:
        """Comparisons of these rows with each other over items and documents, whose answers only the other folder has."""
        return {
            (one["row"], one["against"], one["measure"]): self._tested(one)
            for one in self._results[model, task]["comparisons"]
            if one["over"] != "seeds" and one["row"] in self.names and one["against"] in self.names
        }

    def _tested(self, comparison: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """What a comparison found; nothing over documents before schema 2, which did not draw them with their tokens."""
        if comparison["difference"] is None or (self._schema < 2 and comparison["over"] == "documents"):
            return None
        return {key: comparison.get(key) for key in _TESTED}

    def check(self, model: str, task: str, base: Mapping[str, Any], reference: Mapping[str, Any]) -> None:
        """Whether the untouched model and the reference came out as they did there.

        Args:
            model, task: where.
            base: the untouched model's figures, as the JSON has them.
            reference: trial -> seed (as text) -> figures of the reference's finals.

        Raises:
            ALoRAError: they did not; nothing is taken over then.
        """
        result = self._results[model, task]
        own = {one["trial"]: one["seeds"] for one in result["finals"] if one["row"] == self._board.reference}
        if result["base"] != base or own != reference:
            raise ALoRAError(
                f"on {task} {'the untouched model' if result['base'] != base else self._board.reference} does not come out "
                f"as in {self.path} (another processor, or other code?), so that its rows cannot stand beside those that are "
                "trained here: leave out --finished, and all rows are trained"
            )


def _check_same(board: Board, content: Mapping[str, Any], path: Path) -> None:
    written = content.get("written")
    if not isinstance(written, dict) or not isinstance(written.get("rows"), dict):
        raise ALoRAError(f"{path} does not say what board it is of: its rows cannot be taken over")
    for key in sorted({*written, *board.written} - set(_OF_PEOPLE)):
        if written.get(key) != board.written.get(key):
            raise ALoRAError(f"{path} was made with another {key} than {board.path} has: its rows cannot be taken over")
    there, here = content.get("environment"), environment()
    there = there if isinstance(there, dict) else {}
    # A platform's name has the kernel's number in it, and the threads are this process's, not its workers'. Whether those and
    # the processor compute alike is seen on the reference.
    different = [key for key in sorted({*there, *here} - {"platform", "threads"}) if there.get(key) != here.get(key)]
    if different:
        names = ", ".join(f"{key} {there.get(key)} (here {here.get(key)})" for key in different)
        raise ALoRAError(f"{path} was made with {names}: its rows cannot be taken over")


def _row_found(row: BoardRow, result: Mapping[str, Any], path: Path) -> RowFound:
    trials = [one for one in result["trials"] if one["row"] == row.name]
    labels = [trial.label for trial in row.trials]
    if [one["trial"] for one in trials] != labels:
        raise ALoRAError(f"{path} has other trials of {row.name} than the board: the file is damaged")
    found = RowFound(row.name, labels, [trial.settings for trial in row.trials], [one["validation"] for one in trials])
    for final in result["finals"]:
        if final["row"] == row.name:
            place = labels.index(final["trial"])
            found.chosen.append(place)
            found.finals[place] = {int(seed): figures for seed, figures in final["seeds"].items()}
    return found
