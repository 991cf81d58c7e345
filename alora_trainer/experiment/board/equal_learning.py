"""What is forgotten at one amount of learning: read off a method's curve, between the trainings that there are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alora_trainer.experiment.board.fronts import Point


def forgotten_at(curve: Sequence[Point], learned: float) -> float | None:
    """What is forgotten where a curve reaches an amount of learning, by linear interpolation in what is learned.

    The curve begins at the untouched model, (0, 0), and goes through all of its points by what they learn (of points that learn
    the same, through the mean of what they forget). None of them is left out because it came out badly: which ones there
    are was decided on other data. Forgetting grows faster than in proportion from zero on, so that what is read between the
    untouched model and the first point is rather too much.

    Args:
        curve: (learned, forgotten) of every training, both relative to the untouched model.
        learned: the amount to read at.

    Returns:
        What is forgotten there; None if no training learned that much.
    """
    forgotten: dict[float, list[float]] = {0.0: [0.0]}
    for gain, rise in curve:
        if math.isfinite(gain) and math.isfinite(rise):
            forgotten.setdefault(gain, []).append(rise)
    gains = sorted(forgotten)
    if learned > gains[-1] or not len(curve):
        return None
    return float(np.interp(learned, gains, [statistics.fmean(forgotten[gain]) for gain in gains]))


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
        share: of that, such as 0.95.
    """
    return Spread.of({seed: forgotten_at(curve, share * reference[seed]) for seed, curve in curves.items()})
