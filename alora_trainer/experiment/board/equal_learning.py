"""What is forgotten at one amount of learning, and over all of them: read off a method's curve, between its trainings."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from alora_trainer.experiment.board.fronts import Point


def forgotten_at(curve: Sequence[Point], learned: float) -> float | None:
    """What is forgotten where a curve reaches an amount of learning, by linear interpolation in what is learned.

    The curve begins at the untouched model, (0, 0), and goes through all of its points by what they learn (of points that learn
    the same, through the mean of what they forget). None of them is left out because it came out badly with one seed.

    Args:
        curve: (learned, forgotten) of every training, both relative to the untouched model.
        learned: the amount to read at, above zero.

    Returns:
        What is forgotten there; None if no training learned that much, if `learned` is not above zero, or if a training has no
        finite figures.
    """
    corners = _corners(curve)
    if corners is None or learned <= 0 or learned > corners[-1][0]:
        return None
    gains, rises = zip(*corners, strict=True)
    return float(np.interp(learned, gains, rises))


def area_behind(curve: Sequence[Point]) -> float | None:
    """How much forgetting a curve saves: the mean of max(0, 1 - f(l)) over all amounts of learning l between 0 and 1.

    f(l) is what `forgotten_at` reads; where the curve does not reach, nothing is saved. In units of what a reference learned
    and forgot, (1, 1): a straight line to it has 0.5, and what learns as much and forgets nothing has 1.

    Args:
        curve: (learned, forgotten) of every training, in these units.

    Returns:
        The area; None if a training has no finite figures.
    """
    corners = _corners(curve)
    if corners is None:
        return None
    area = 0.0
    for (start, low), (end, high) in pairwise(corners):
        if start >= 1:
            break
        stop = min(end, 1.0)
        saved = 1 - low, 1 - (low + (high - low) * (stop - start) / (end - start))
        more, less = max(saved), min(saved)
        width = stop - start
        if less < 0:  # above the square from where the line leaves it
            width *= max(more, 0.0) / (more - less) if more > less else 0.0
        area += width * (max(more, 0.0) + max(less, 0.0)) / 2
    return area


def _corners(curve: Sequence[Point]) -> list[Point] | None:
    """The curve from the untouched model on, a point for each amount of learning; None if one of its points is not finite."""
    forgotten: dict[float, list[float]] = {0.0: [0.0]}
    for gain, rise in curve:
        if not (math.isfinite(gain) and math.isfinite(rise)):
            return None
        if gain > 0:
            forgotten.setdefault(gain, []).append(rise)
    return [(gain, statistics.fmean(forgotten[gain])) for gain in sorted(forgotten)]


@dataclass(frozen=True)
class Spread:
    """A number over seeds.

    Attributes:
        each: seed -> its value, None where there is none.
        mean: of all of them; None where one is missing.
        sd: the sample's standard deviation; None where there is no mean, or one seed.
        error: of the mean: sd over the square root of the number of seeds.
    """

    each: Mapping[int, float | None]
    mean: float | None
    sd: float | None
    error: float | None

    @classmethod
    def of(cls, each: Mapping[int, float | None]) -> Spread:
        """The spread of values by seed."""
        found = [value for value in each.values() if value is not None]
        if not found or len(found) < len(each):
            return cls(dict(each), None, None, None)
        sd = statistics.stdev(found) if len(found) > 1 else None
        return cls(dict(each), statistics.fmean(found), sd, None if sd is None else sd / math.sqrt(len(found)))

    def to_json(self) -> dict[str, Any]:
        """As plain data, seeds as texts."""
        return {
            "mean": self.mean,
            "sd": self.sd,
            "error": self.error,
            "each": {str(seed): value for seed, value in self.each.items()},
        }


def forgotten_at_equal_learning(
    curves: Mapping[int, Sequence[Point]], reference: Mapping[int, float], share: float
) -> Spread:
    """What a method forgets where it has learned a share of what the reference learned, seed by seed.

    Args:
        curves: seed -> (learned, forgotten) of the method's trainings with it.
        reference: seed -> what the reference learned with it.
        share: of that, such as 0.95. A seed with which the reference learned nothing has no value.
    """
    return Spread.of({seed: forgotten_at(curve, share * reference[seed]) for seed, curve in curves.items()})
