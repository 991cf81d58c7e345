"""Rows against rows: paired over seeds on their curves, and over items and documents at the point that one would take."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alora_trainer.experiment.board.equal_learning import Spread
from alora_trainer.experiment.board.measures import Samples
from alora_trainer.experiment.board.paired import holm, paired_t, verdict
from alora_trainer.experiment.report.significance import paired_bootstrap

# A row's numbers by seed (name -> Spread), and seed -> what its taken training said item by item.
RowData = tuple[Mapping[str, Spread], Mapping[int, Samples]]
_MORE_IS_BETTER = ("area", "accuracy")
_FIGURES = ("difference", "low", "high", "p", "units")

# (row, against, measure) -> what was found earlier, by whoever has the answers item by item; None: nothing could be tested.
KnownComparisons = Mapping[tuple[str, str, str], Mapping[str, Any] | None]


@dataclass(frozen=True)
class PlannedComparisons:
    """Which comparisons a board is for, as its file says, before anything is trained.

    Attributes:
        rows: names of all rows, whether they are finished or not.
        against: names of those that all are compared with.
        resamples: of the bootstrap.
    """

    rows: Sequence[str]
    against: Sequence[str]
    resamples: int = 9999

    def pairs(self, among: Collection[str]) -> list[tuple[str, str]]:
        """(row, against) of those among these names; of two rows that both are compared with, each pair counts once."""
        return [
            (row, other)
            for place, other in enumerate(self.against)
            for row in self.rows
            if row != other and row not in self.against[:place] and {row, other} <= set(among)
        ]

    @property
    def count(self) -> int:
        """How many pairs there are when all rows are finished."""
        return len(self.pairs(self.rows))


def compared(
    rows: Mapping[str, RowData], plan: PlannedComparisons, known: KnownComparisons | None = None
) -> list[dict[str, Any]]:
    """All finished rows against each of those that are to be compared with.

    Over seeds: Student's t-test of paired differences of what a curve gives. Over items and documents: a bootstrap of paired
    differences, each item's answers averaged over seeds first, since items are what is drawn; over documents that of the
    difference of losses a token, documents drawn with their tokens. All are corrected for the planned number of pairs: what
    is shown of a row does not depend on which others are finished, or could not be tested.

    Args:
        rows: the numbers of each.
        plan: which are compared.
        known: comparisons over items that were made where their answers are; they are corrected anew with all others.

    Returns:
        One entry a measure and pair: ``row``, ``against``, ``measure``, ``over`` ("seeds", "items" or "documents"),
        ``units`` (how many of them), ``difference`` (row - against), ``low``, ``high`` (95 %), ``p``, ``p_holm`` (corrected
        within the measure) and ``verdict``. Where nothing can be tested, all of these are None and the verdict is "not better".
    """
    pairs = plan.pairs(rows)
    earlier = known or {}
    entries: list[dict[str, Any]] = []
    for measure in [*next(iter(rows.values()))[0], "rise", "choices", "accuracy"]:
        own = [
            earlier[row, other, measure]
            if (row, other, measure) in earlier
            else _one(measure, rows[row], rows[other], plan.resamples)
            for row, other in pairs
        ]
        corrected = holm([None if one is None else one["p"] for one in own], planned=plan.count)
        for (row, other), found, p in zip(pairs, own, corrected, strict=True):
            tested = found or dict.fromkeys(_FIGURES)
            less = measure not in _MORE_IS_BETTER
            said = verdict(tested["difference"] or 0.0, p, less_is_better=less)
            entries.append(
                {"row": row, "against": other, "measure": measure, "over": _over(measure)}
                | {key: tested[key] for key in _FIGURES}
                | {"p_holm": p, "verdict": said}
            )
    return entries


def _over(measure: str) -> str:
    """What the differences of a measure are paired over: "seeds", "items" or "documents"."""
    if measure not in _BY_ITEM:
        return "seeds"
    return "documents" if measure == "rise" else "items"


def _one(measure: str, row: RowData, other: RowData, resamples: int) -> Mapping[str, Any] | None:
    if measure not in _BY_ITEM:
        tested = paired_t(row[0][measure].each, other[0][measure].each)
        return None if tested is None else {**tested, "units": tested["pairs"]}
    seeds = sorted(set(row[1]) & set(other[1]))
    found = [_BY_ITEM[measure](row[1][seed], other[1][seed]) for seed in seeds]
    if not found or any(one is None for one in found):
        return None
    differences, weights = zip(*(one for one in found if one is not None), strict=True)
    if len(weights[0]) < 2 or any(not np.array_equal(one, weights[0]) for one in weights):
        return None
    mean = np.mean(differences, axis=0)
    if not np.any(mean != mean[0]):
        return None
    return paired_bootstrap(mean, weights[0], resamples=resamples) | {"units": len(mean)}


# What an item (or a document) adds to the difference, and to what the sum of these is divided by.
Parts = tuple[np.ndarray, np.ndarray]


def _rise(one: Samples, other: Samples) -> Parts | None:
    return (one.loss - other.loss, one.tokens) if np.array_equal(one.tokens, other.tokens) else None


def _choices(one: Samples, other: Samples) -> Parts | None:
    return _of_items(one.choice_loss, other.choice_loss)


def _correct(one: Samples, other: Samples) -> Parts | None:
    return _of_items(one.correct, other.correct)


def _of_items(one: np.ndarray, other: np.ndarray) -> Parts | None:
    return (one - other, np.ones(len(one))) if len(one) == len(other) else None


_BY_ITEM = {"rise": _rise, "choices": _choices, "accuracy": _correct}
