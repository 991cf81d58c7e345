"""A promise on general loss: "it has risen by no more than this", with 95 % confidence, from losses before and after.

The measure is the budget's (`budget.Rise`): the rise of the mean negative log-likelihood a token over the base model's, as a
share of it. The units of its noise are the sequences, each scored by both models, and not their tokens, which are alike within
a sequence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

CONFIDENCE = 0.95
# With fewer sequences the limit covers less than it says where a few of them got much worse (losses that rise by a gamma
# distribution of shape 1/2: 90 % with 30, 93 % with 60; tests/penalty/test_promise.py).
LEAST_SEQUENCES = 60


@dataclass(frozen=True)
class Bound:
    """What some text says of the rise of general loss.

    Attributes:
        rise: estimated, as a share of the base model's loss.
        error: its standard error, over sequences.
        upper: the one-sided upper confidence limit of the rise.
        sequences: how many were scored.
    """

    rise: float
    error: float
    upper: float
    sequences: int

    def keeps(self, budget: float) -> bool:
        """Whether the rise can be promised to be within `budget`; never by fewer than `LEAST_SEQUENCES`."""
        return self.sequences >= LEAST_SEQUENCES and self.upper <= budget

    def sequences_for(self, budget: float) -> int | None:
        """About how many sequences of the same kind could promise `budget`, if the rise is what it is estimated as.

        None where no number could: the rise itself is above the budget.
        """
        if self.rise >= budget or not math.isfinite(self.upper):
            return None
        needed = self.sequences * ((self.upper - self.rise) / (budget - self.rise)) ** 2
        return max(math.ceil(needed), LEAST_SEQUENCES)


def bound_of(before: Sequence[float], after: Sequence[float], confidence: float = CONFIDENCE) -> Bound:
    """The rise from `before` to `after`, summed losses of the same sequences, and its upper confidence limit.

    The rise is a ratio of sums, sum(after) / sum(before) - 1. Its standard error is the ratio estimator's, by the residuals
    ``after - (1 + rise) * before`` (Cochran, Sampling Techniques, 1977, 6.4). The limit is Student's, moved up where the
    residuals are skewed to the right, as a few sequences that got much worse make them: the sample then shows too little of
    both the mean and the noise (Hall, Annals of Probability 11, 1983; equation 2.5 of his expansion for the t statistic). It is
    never moved down.

    Args:
        before: of the base model, nats.
        after: of the tuned model, nats.
        confidence: of the limit, one-sided.
    """
    count, total = len(before), math.fsum(before)
    rise = math.fsum(after) / total - 1
    if count < 2 or not math.isfinite(rise):
        return Bound(rise, math.inf, math.inf, count)
    residuals = [now - then * (1 + rise) for now, then in zip(after, before, strict=True)]
    deviation = math.sqrt(math.fsum(residual**2 for residual in residuals) / (count - 1))
    error = deviation * math.sqrt(count) / total
    quantile = student_quantile(confidence, count - 1)
    skewness = math.fsum(residual**3 for residual in residuals) / count / deviation**3 if deviation > 0 else 0.0
    normal = NormalDist().inv_cdf(confidence)
    quantile += max(skewness, 0.0) * (2 * normal**2 + 1) / (6 * math.sqrt(count))
    return Bound(rise, error, rise + quantile * error, count)


def student_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t (Abramowitz and Stegun 26.7.5): right to three places from five degrees of freedom on."""
    x = NormalDist().inv_cdf(probability)
    terms = (
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
        (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160,
    )
    return x + sum(term / freedom**power for power, term in enumerate(terms, start=1))


@dataclass(frozen=True)
class Tested:
    """One scale of an adapter's movement, and what some text says of it."""

    scale: float
    bound: Bound


def in_fixed_order(scales: Sequence[float], measure: Callable[[float], Bound], budget: float) -> list[Tested]:
    """Test scales in their order until one does not keep the budget.

    All that were passed before the first failure are promised together with the confidence of one test: the first scale in the
    order whose true rise is above the budget must pass by chance for any wrong promise to be made, and does so with 5 % at most
    (fixed-sequence testing; Maurer, Hothorn and Lehmacher 1995). So the last one passed may be chosen, on the very text that
    it was tested on, as long as the order was not chosen by that text. Nothing is assumed of how the rise depends on the scale.

    Returns:
        what was tested, the one that failed last, if any did.
    """
    tested: list[Tested] = []
    for scale in scales:
        tested.append(Tested(scale, measure(scale)))
        if not tested[-1].bound.keeps(budget):
            break
    return tested


def promised(tested: Sequence[Tested], budget: float) -> Tested | None:
    """The last scale that was passed; None for none."""
    passed = [one for one in tested if one.bound.keeps(budget)]
    return passed[-1] if passed else None


# By which the scale that was chosen on other text is multiplied, in the order of the tests.
_ORDER = (0.5, 0.75, 0.9, 1.0, 1.1, 1.2)
# Of the budget, what the chosen scale should use at least; looked for is the middle between that and all of it.
_USED = 0.96
# Tries that a curve leads, and how often what is then left is halved.
_LED, _HALVINGS = 4, 7
# Of the curve that is begun with: noise grows with the scale, a rise with its square.
_POWER = 1.7
_SMALLEST = 2.0**-_HALVINGS


def chosen_scale(measure: Callable[[float], Bound], budget: float, largest: float = 1.0) -> float:
    """The largest scale that keeps the budget on the text that scales are chosen by, or one that uses most of it.

    The next scale is where the limit would use 98 % of the budget if it went on as between the last two that were tried, as a
    power of the scale: two or three are enough for limits as they are. Where that does not close in, halving does.

    Args:
        measure: what that text says of a scale.
        budget: the largest rise.
        largest: scale that is looked at.

    Returns:
        a scale that was measured and keeps it; 1/128 of `largest` if none that was tried does.
    """
    points = [(largest, measure(largest).upper)]
    if points[0][1] <= budget:
        return largest
    low, high, aim = 0.0, largest, budget * (1 + _USED) / 2
    for number in range(_LED + _HALVINGS):
        scale = _as_a_power(points[-2:], aim) if number < _LED else None
        scale = scale if scale is not None and low < scale < high else (low + high) / 2
        points.append((scale, measure(scale).upper))
        if points[-1][1] > budget:
            high = scale
            continue
        low = scale
        if points[-1][1] >= _USED * budget:
            break
    return low or _SMALLEST * largest


def _as_a_power(points: Sequence[tuple[float, float]], aim: float) -> float | None:
    """The scale at which a power of it through (scale, limit) is `aim`; None where no power is."""
    if any(not 0 < limit < math.inf for _, limit in points):
        return None
    (first, before), (last, now) = points[0], points[-1]
    power = math.log(now / before) / math.log(last / first) if last != first else _POWER
    return last * (aim / now) ** (1 / power) if power > 0.1 else None


def order_around(scale: float, largest: float = 1.0) -> list[float]:
    """The scales to test, in their order, around the one that was chosen: rising, none above `largest`."""
    return sorted({min(scale * factor, largest) for factor in _ORDER})
