"""Whether two methods differ by more than chance, seed by seed and item by item; all statistics are scipy's."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SIGNIFICANT = 0.05
# "not better" is all that a comparison may say which shows nothing.
BETTER, WORSE, NOT_BETTER = "better", "worse", "not better"


def paired_t(one: Mapping[int, float | None], other: Mapping[int, float | None]) -> dict[str, Any] | None:
    """Student's t-test of paired differences (two-sided) over the seeds that both were trained with.

    Returns:
        ``difference`` (one - other, the mean), ``low`` and ``high`` of its 95 % interval, ``p`` and ``pairs``; None with fewer
        than two pairs, and where one of the values is None: seeds that did not learn enough to be compared are no chance
        losses, and without them a method would be judged by its best. Where the differences do not vary at all, interval and p
        have no value (None).
    """
    from scipy import stats

    pairs = [(one[seed], other[seed]) for seed in one if seed in other]
    differences = [a - b for a, b in pairs if a is not None and b is not None]
    count = len(differences)
    if count < 2 or count < len(pairs):
        return None
    mean, sd = statistics.fmean(differences), statistics.stdev(differences)
    found: dict[str, Any] = {"difference": mean, "low": None, "high": None, "p": None, "pairs": count}
    if sd > 0:
        error = sd / math.sqrt(count)
        half = float(stats.t.ppf(0.975, count - 1)) * error
        p = 2 * float(stats.t.sf(abs(mean) / error, count - 1))
        found |= {"low": mean - half, "high": mean + half, "p": p}
    return found


def holm(values: Sequence[float | None], *, planned: int | None = None) -> list[float | None]:
    """P values corrected for their number by Holm's step-down method (1979).

    The i-th smallest of m becomes the largest of (m - j + 1) p_j over all j <= i, at most 1: to reject where that is
    below alpha keeps the chance of any false rejection below alpha, however the tests depend on each other.

    Args:
        values: of one family; those that are None are no tests, and stay None.
        planned: how many tests the family was planned to have, at least as many as there are values: those that could not be
            made count as if they had shown nothing (P = 1). Left out, only those that were made count.

    Raises:
        ValueError: there are more values than were planned.
    """
    if planned is not None and planned < len(values):
        raise ValueError(f"{len(values)} tests of {planned} that were planned")
    order = sorted((value, place) for place, value in enumerate(values) if value is not None)
    corrected: list[float | None] = [None] * len(values)
    largest, count = 0.0, len(order) if planned is None else planned
    for rank, (value, place) in enumerate(order):
        largest = max(largest, min(1.0, (count - rank) * value))
        corrected[place] = largest
    return corrected


def noise_floor(groups: Sequence[Sequence[float]], seeds: int) -> dict[str, Any] | None:
    """How far the means of two methods come apart by their seeds alone.

    Args:
        groups: values of trainings that differ in their seed alone, a group a setting (all of the reference). The groups share
            their seeds, so that they say the same of them over again: together they have the degrees of freedom of one.
        seeds: how many there are in the means that are to be compared.

    Returns:
        ``sd``, the standard deviation over seeds, pooled over the groups; ``df``, its degrees of freedom; ``difference``, which
        two means of `seeds` values that are the same method's, not paired, exceed one time in twenty: t sd sqrt(2 / seeds).
        None without a group of two.
    """
    from scipy import stats

    usable = [np.asarray(group, dtype=np.float64) for group in groups if len(group) > 1]
    if not usable:
        return None
    spread = sum(float(((group - group.mean()) ** 2).sum()) for group in usable)
    sd = math.sqrt(spread / sum(len(group) - 1 for group in usable))
    df = min(len(group) for group in usable) - 1
    return {"sd": sd, "df": df, "difference": float(stats.t.ppf(0.975, df)) * sd * math.sqrt(2 / seeds)}


def verdict(difference: float, p: float | None, *, less_is_better: bool) -> str:
    """What a comparison shows: better or worse by its sign where the corrected P value is below 5 %, else "not better"."""
    if p is None or p >= SIGNIFICANT or difference == 0:
        return NOT_BETTER
    return BETTER if (difference < 0) == less_is_better else WORSE
