"""What was found of one model and task, brought together for the board's JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alora_trainer.data.general import SELF
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.board.board_file import Board
from alora_trainer.experiment.board.cells import Place
from alora_trainer.experiment.board.measures import Measuring, Samples
from alora_trainer.experiment.board.rows import BoardRow
from alora_trainer.experiment.board.summary import RowFound, Rules, summarise
from alora_trainer.experiment.board.taken_over import FinishedRows
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.report.method_result import MethodResult


class PlaceFound:
    """One model and task: the untouched model, every trial, and the finals.

    Args:
        validation: the place of the trials.
        bases: place -> the untouched model's result there, and its folder.
    """

    def __init__(self, validation: Place, bases: Mapping[Place, tuple[MethodResult, Path]]) -> None:
        self.place = validation
        self.rows: dict[str, RowFound] = {}
        self.finished: FinishedRows | None = None
        self.recorded = frozenset(_recorded(validation))
        self._measuring = {
            place: Measuring(validation.task.learning, self.recorded, result, Samples.read(folder).choices)
            for place, (result, folder) in bases.items()
        }

    def take_over(self, finished: FinishedRows) -> None:
        """Rows that were finished elsewhere; whether they fit is looked at as soon as the reference is there."""
        self.finished = finished
        self.rows |= {row.name: row for row in finished.rows(self.place.model, self.place.task.name)}

    def add_trials(self, row: BoardRow, results: Sequence[MethodResult]) -> None:
        """The results of a row's trials, in their order."""
        figures = [self._measuring[self.place].figures(result) for result in results]
        self.rows[row.name] = RowFound(
            row.name, [trial.label for trial in row.trials], [trial.settings for trial in row.trials], figures
        )

    def add_final(self, row: RowFound, trial: int, place: Place, result: MethodResult, folder: Path) -> None:
        """One final of a row: the result of its trial at `place`, and the training's folder."""
        (score,) = result.tasks.values()
        figures = self._measuring[place].figures(result) | {"correct": score.correct}
        row.finals.setdefault(trial, {})[place.seed] = figures
        row.samples.setdefault(trial, {})[place.seed] = Samples.read(folder)

    def whole_rows(self, seeds: Sequence[int]) -> list[RowFound]:
        """The rows whose finals are all there, the reference among them."""
        return [
            row
            for row in self.rows.values()
            if row.chosen and all(seed in row.finals.get(trial, {}) for trial in row.chosen for seed in seeds)
        ]

    def to_json(self, board: Board, rules: Rules) -> dict[str, Any]:
        """As docs/board.md describes it; rows in the board's order.

        Raises:
            ALoRAError: the reference is not whole.
        """
        order = [row.name for row in board.rows]
        rows = sorted(self.whole_rows(board.seeds), key=lambda row: order.index(row.name))
        if board.reference not in [row.name for row in rows]:
            raise ALoRAError(f"the finals of the reference {board.reference} could not be trained")
        tried = sorted(self.rows.values(), key=lambda row: order.index(row.name))
        trials = [
            {
                "row": row.name,
                "trial": label,
                "settings": dict(row.settings[place]),
                "final": place in row.chosen,
                "validation": dict(row.validation[place]),
            }
            for row in tried
            for place, label in enumerate(row.labels)
        ]
        finals: list[dict[str, Any]] = [
            {
                "row": row.name,
                "trial": row.labels[place],
                "seeds": {str(seed): dict(row.finals[place][seed]) for seed in board.seeds},
            }
            for row in rows
            for place in row.chosen
        ]
        first = next(place for place in self._measuring if place.final)
        base = self._measuring[first].base
        kinds = list(base.general.subsets or {})
        (score,) = base.tasks.values()
        untouched = {
            "learning": self.place.task.learning.figure(base),
            "accuracy": score.acc,
            "choices": score.choice_cross_entropy,
            "chance": score.chance,
            "items": score.items,
            "cross_entropy": base.general.token_cross_entropy,
            "tokens": base.general.tokens,
            "correct": score.correct,
        }
        known = None
        if self.finished is not None:
            where = self.place.model, self.place.task.name
            reference = {one["trial"]: one["seeds"] for one in finals if one["row"] == board.reference}
            self.finished.check(*where, untouched, reference)
            known = self.finished.known(*where)
        return {
            "model": self.place.model,
            "task": self.place.task.name,
            "learning": self.place.task.learning.name,
            "recorded": [kind for kind in kinds if kind in self.recorded],
            "other": [kind for kind in kinds if kind not in self.recorded],
            "base": untouched,
            "not_finished": [name for name in order if name not in [row.name for row in rows]],
            "trials": trials,
            "finals": finals,
            **summarise(rows, rules, known),
        }


def _recorded(place: Place) -> list[str]:
    """The kinds of general text that anything is recorded on or trained with, by their names in the recipe."""
    recipe = load_recipe(place.task.recipe, place.overrides)
    return [] if recipe.general.train in (None, SELF) else list(recipe.general.train)


def collected(found: Sequence[PlaceFound], board: Board, rules: Rules) -> list[dict[str, Any]]:
    """The JSON's ``results``, an entry a model and task."""
    return [one.to_json(board, rules) for one in found]
