"""Rows against rows: paired over seeds on their curves, and over items and documents at the point that one would take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alora_trainer.experiment.board.equal_learning import Spread
from alora_trainer.experiment.board.measures import Samples
from alora_trainer.experiment.board.paired import holm, paired_t, verdict
from alora_trainer.experiment.report.significance import paired_bootstrap

# A row's numbers by seed (name -> Spread), and seed -> what its taken training said item by item.
RowData = tuple[Mapping[str, Spread], Mapping[int, Samples]]
_MORE_IS_BETTER = ("hypervolume", "accuracy")


# (row, against, measure) -> what was found earlier, by whoever has the answers item by item; None: nothing could be tested.
KnownComparisons = Mapping[tuple[str, str, str], Mapping[str, Any] | None]


def compared(
    rows: Mapping[str, RowData], against: Sequence[str], resamples: int, known: KnownComparisons | None = None
) -> list[dict[str, Any]]:
    """All rows against each of `against`.

    Over seeds: Student's t-test of paired differences of what a curve gives. Over items (or documents, for the rise): a
    bootstrap of paired differences, each item's answers averaged over seeds first, since items are what is drawn.

    Args:
        rows: the numbers of each.
        against: names of those that all are compared with.
        resamples: of the bootstrap.
        known: comparisons over items that were made where their answers are; they are corrected anew with all others.

    Returns:
        One entry a measure and pair: ``row``, ``against``, ``measure``, ``over`` ("seeds", "items" or "documents"),
        ``difference`` (row - against), ``low``, ``high`` (95 %), ``p``, ``p_holm`` (corrected within the measure) and
        ``verdict``. Where nothing can be tested, all of these are None and the verdict is "not better".
    """
    # Of two rows that both are compared with, each pair counts once.
    pairs = [
        (row, other)
        for place, other in enumerate(against)
        for row in rows
        if row != other and row not in against[:place]
    ]
    earlier = known or {}
    entries: list[dict[str, Any]] = []
    for measure in [*next(iter(rows.values()))[0], "rise", "choices", "accuracy"]:
        own = [
            earlier[row, other, measure]
            if (row, other, measure) in earlier
            else _one(measure, rows[row], rows[other], resamples)
            for row, other in pairs
        ]
        corrected = holm([None if one is None else one["p"] for one in own])
        for (row, other), found, p in zip(pairs, own, corrected, strict=True):
            tested = found or dict.fromkeys(("difference", "low", "high", "p"))
            over = "seeds" if measure not in _BY_ITEM else "documents" if measure == "rise" else "items"
            less = measure not in _MORE_IS_BETTER
            said = verdict(tested["difference"] or 0.0, p, less_is_better=less)
            kept = {key: tested[key] for key in ("difference", "low", "high", "p")}
            entries.append(
                {"row": row, "against": other, "measure": measure, "over": over, **kept, "p_holm": p, "verdict": said}
            )
    return entries


def _one(measure: str, row: RowData, other: RowData, resamples: int) -> Mapping[str, Any] | None:
    if measure not in _BY_ITEM:
        return paired_t(row[0][measure].each, other[0][measure].each)
    seeds = sorted(set(row[1]) & set(other[1]))
    differences = [_BY_ITEM[measure](row[1][seed], other[1][seed]) for seed in seeds]
    if not differences or len(differences[0]) < 2 or any(len(one) != len(differences[0]) for one in differences):
        return None
    mean = np.mean(differences, axis=0)
    return paired_bootstrap(mean, resamples=resamples) if np.any(mean != mean[0]) else None


def _rise(one: Samples, other: Samples) -> np.ndarray:
    """By document, so that the mean is the difference of the losses a token over all documents."""
    if len(one.loss) != len(other.loss):
        return np.empty(0)
    return (one.loss - other.loss) * len(one.tokens) / one.tokens.sum()


def _choices(one: Samples, other: Samples) -> np.ndarray:
    return one.choice_loss - other.choice_loss if len(one.choice_loss) == len(other.choice_loss) else np.empty(0)


def _correct(one: Samples, other: Samples) -> np.ndarray:
    return one.correct - other.correct if len(one.correct) == len(other.correct) else np.empty(0)


_BY_ITEM = {"rise": _rise, "choices": _choices, "accuracy": _correct}
