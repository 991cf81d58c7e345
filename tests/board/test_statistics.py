"""The board's statistics: against brute force, closed forms and what other people's code says."""

from __future__ import annotations

import math
import random
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from alora_trainer.experiment.board.equal_learning import (
    Spread,
    area_behind,
    forgotten_at,
    forgotten_at_equal_learning,
)
from alora_trainer.experiment.board.fronts import pareto_front
from alora_trainer.experiment.board.paired import BETTER, NOT_BETTER, WORSE, holm, noise_floor, paired_t, verdict

# Few values, so that equal ones are common.
_GRID = st.integers(-2, 8).map(float)
_POINTS = st.lists(st.tuples(_GRID, _GRID), max_size=7)
_P = st.lists(st.floats(0, 1), max_size=8)


@given(_POINTS)
def test_the_front_is_what_nobody_beats(points: list[tuple[float, float]]) -> None:
    def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return one != other and one[0] >= other[0] and one[1] <= other[1]

    front = pareto_front(points)
    unbeaten = {point for point in points if not any(beats(other, point) for other in points)}
    assert {points[place] for place in front} == unbeaten and len(front) == len(unbeaten)
    assert [points[place] for place in front] == sorted(points[place] for place in front)


def test_what_is_not_finite_is_on_no_front() -> None:
    """One trial that diverged must not swallow the others, wherever it stands."""
    points = [(0.4, 0.1), (0.3, 0.05), (math.nan, math.nan)]
    for order in ([0, 1, 2], [2, 0, 1], [0, 2, 1]):
        mixed = [points[place] for place in order]
        assert [mixed[place] for place in pareto_front(mixed)] == [(0.3, 0.05), (0.4, 0.1)]
    assert pareto_front([(math.inf, 0.1), (1.0, math.nan), (1.0, -math.inf)]) == []


_CURVES = st.lists(st.tuples(st.floats(-0.5, 1.6), st.floats(-0.3, 2.0)), max_size=5)


@given(_CURVES)
def test_the_area_is_the_mean_of_what_is_saved(curve: list[tuple[float, float]]) -> None:
    """By its definition, at the middles of very many equal parts of the learning."""
    parts = 500
    read = [forgotten_at(curve, (part + 0.5) / parts) for part in range(parts)]
    saved = [0.0 if forgotten is None else max(0.0, 1 - forgotten) for forgotten in read]
    found = area_behind(curve)
    assert found == pytest.approx(statistics.fmean(saved), abs=0.02)
    assert area_behind(curve[::-1]) == pytest.approx(found, abs=1e-12)


def test_areas_known_beforehand() -> None:
    assert area_behind([]) == 0
    assert (
        area_behind([(1.0, 1.0)]) == 0.5 and area_behind([(1.0, 0.0)]) == 1
    )  # the reference; one that forgets nothing
    assert area_behind([(2.0, 2.0)]) == 0.5  # more of the same is neither better nor worse
    assert area_behind([(0.5, 0.25)]) == pytest.approx(
        0.5 * (1 + 0.75) / 2
    )  # nothing is saved of what it did not learn
    assert area_behind([(0.5, 2.0)]) == pytest.approx(0.25 / 2)  # from half of its learning on it forgets more than all
    assert area_behind([(1.0, 0.5), (0.5, math.nan)]) is None
    # A quarter circle, learned = sin, forgotten = 1 - cos, in many points.
    circle = [(math.sin(a), 1 - math.cos(a)) for a in np.linspace(0, math.pi / 2, 20001)]
    assert area_behind(circle) == pytest.approx(math.pi / 4, abs=1e-4)


@given(st.floats(0.05, 0.9), st.floats(0.1, 3))
def test_a_further_training_on_the_line_changes_no_area(share: float, slope: float) -> None:
    """So a row with two finals has no better area than one with one, for having them."""
    assert area_behind([(share, slope * share), (1.0, slope)]) == pytest.approx(area_behind([(1.0, slope)]), abs=1e-12)


def test_reading_a_curve() -> None:
    curve = [(1.0, 0.1), (2.0, 0.4), (4.0, 0.2)]
    assert forgotten_at(curve, 1.0) == pytest.approx(0.1)
    assert forgotten_at(curve, 0.5) == pytest.approx(0.05)  # from the untouched model
    assert forgotten_at(curve, 1.5) == pytest.approx(0.25)
    assert forgotten_at(curve, 3.0) == pytest.approx(0.3)  # the bad point counts
    assert forgotten_at(curve, 4.0) == pytest.approx(0.2)
    assert forgotten_at(curve, 4.1) is None
    assert forgotten_at(curve[::-1], 1.5) == forgotten_at(curve, 1.5)
    assert forgotten_at([(1.0, 0.1), (1.0, 0.3)], 1.0) == pytest.approx(0.2)
    assert forgotten_at([(-1.0, 0.1)], 0.5) is None and forgotten_at([], 0.0) is None
    for broken in (math.nan, math.inf):  # what came out badly is not left out
        assert forgotten_at([(1.0, 0.1), (2.0, broken)], 1.0) is None
        assert forgotten_at([(1.0, 0.1), (broken, 0.0)], 1.0) is None


@given(st.floats(0.01, 5), st.floats(0.01, 3), st.lists(st.floats(0.01, 2), min_size=1, max_size=6))
def test_a_straight_curve_is_read_exactly(slope: float, most: float, gains: list[float]) -> None:
    curve = [(gain, slope * gain) for gain in [*gains, most]]
    at = 0.9 * max(gain for gain, _ in curve)
    assert forgotten_at(curve, at) == pytest.approx(slope * at, rel=1e-9)


def test_equal_learning_is_that_of_the_same_seed() -> None:
    curves = {0: [(1.0, 0.2)], 1: [(2.0, 0.2)], 2: [(1.0, 0.4)]}
    found = forgotten_at_equal_learning(curves, {0: 1.0, 1: 1.0, 2: 1.0}, 0.5)
    assert found.each == {0: pytest.approx(0.1), 1: pytest.approx(0.05), 2: pytest.approx(0.2)}
    assert found.mean == pytest.approx(0.35 / 3) and found.sd == pytest.approx(statistics.stdev([0.1, 0.05, 0.2]))
    assert found.error == pytest.approx(stats.sem([0.1, 0.05, 0.2]))
    short = forgotten_at_equal_learning(curves, {0: 1.0, 1: 3.0, 2: 1.0}, 0.9)
    assert short.each[1] is None and (short.mean, short.sd, short.error) == (None, None, None)
    # Where the reference learned nothing, there is nothing to compare at.
    assert forgotten_at_equal_learning(curves, {0: 1.0, 1: -0.1, 2: 0.0}, 0.9).each == {
        0: pytest.approx(0.18),
        1: None,
        2: None,
    }
    assert Spread.of({7: 0.5}).to_json() == {"mean": 0.5, "sd": None, "error": None, "each": {"7": 0.5}}


def test_pairs_are_tested_as_scipy_does() -> None:
    chance = random.Random(1)
    one = {seed: chance.gauss(1, 1) for seed in range(5)}
    other = {seed: chance.gauss(0, 1) for seed in (4, 3, 2, 1, 0, 9)}
    right = stats.ttest_rel(list(one.values()), [other[seed] for seed in one])
    interval = right.confidence_interval()
    found = paired_t(one, other)
    assert found is not None and found["pairs"] == 5
    assert [found[key] for key in ("p", "low", "high")] == pytest.approx([right.pvalue, interval.low, interval.high])
    assert paired_t({0: 1.0, 1: None}, {0: 0.0, 1: 0.0}) is None
    # A seed that never learned so much is not left out: the others were its luckier ones.
    assert paired_t({0: 1.0, 1: 1.1, 2: None}, {0: 5.0, 1: 5.2, 2: 5.0}) is None
    assert paired_t({0: 1.0, 1: 1.1}, {0: 5.0, 1: 5.2, 2: None}) is not None  # trained with other seeds, too
    same = paired_t({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0})
    assert same is not None and same["difference"] == 1 and same["p"] is None


@given(_P)
def test_holm_by_its_own_words(values: list[float]) -> None:
    """Rejected at alpha are the smallest, one after the other, as long as the i-th of m is at most alpha / (m - i + 1)."""
    corrected = holm(values)
    for alpha in (0.01, 0.05, 0.2, 0.7):
        rejected = set()
        for rank, place in enumerate(sorted(range(len(values)), key=lambda one: values[one])):
            if values[place] * (len(values) - rank) > alpha:
                break
            rejected.add(place)
        assert {place for place, value in enumerate(corrected) if value is not None and value <= alpha} == rejected


def test_holm_of_a_textbook() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([None, 0.03, None]) == [None, 0.03, None] and holm([]) == []


@given(_P, st.integers(0, 5), st.randoms())
def test_a_test_that_could_not_be_made_counts_as_one_that_showed_nothing(
    values: list[float], missing: int, chance: random.Random
) -> None:
    whole = [*values, *([1.0] * missing)]
    assert holm(values, planned=len(whole)) == pytest.approx(holm(whole)[: len(values)])
    mixed: list[float | None] = [*values, *([None] * missing)]
    chance.shuffle(mixed)
    found = holm(mixed, planned=len(mixed))
    assert sorted(p for p in found if p is not None) == pytest.approx(sorted(holm(whole)[: len(values)]))  # type: ignore[type-var]
    with pytest.raises(ValueError, match="that were planned"):
        holm([0.1, 0.2], planned=1)


@pytest.mark.parametrize("shared", [0.95, 1.0])
def test_the_noise_floor_is_exceeded_one_time_in_twenty(shared: float) -> None:
    """Two settings with the same seeds come out alike: the second says little of the seeds that the first did not."""
    generator = np.random.default_rng(0)
    exceeded = 0
    for _ in range(4000):
        common, own = generator.normal(0, 2, (1, 3)), generator.normal(0, 2, (2, 3))
        floor = noise_floor((math.sqrt(shared) * common + math.sqrt(1 - shared) * own).tolist(), 3)
        assert floor is not None and floor["df"] == 2
        exceeded += abs(generator.normal(0, 2, 3).mean() - generator.normal(0, 2, 3).mean()) > floor["difference"]
    assert exceeded / 4000 < 0.062  # and not much less often: once in twenty-six, if they share all but a twentieth
    assert exceeded / 4000 > 0.028
    two = noise_floor([[1.0, 3.0], [5.0, 5.0], [9.0]], 2)
    assert two is not None and two["sd"] == pytest.approx(1.0) and two["df"] == 1
    assert noise_floor([[1.0], []], 3) is None


def test_verdicts() -> None:
    assert verdict(-0.1, 0.01, less_is_better=True) == BETTER
    assert verdict(0.1, 0.01, less_is_better=True) == WORSE
    assert verdict(0.1, 0.01, less_is_better=False) == BETTER
    for difference, p in ((-0.1, 0.05), (-0.1, None), (0.1, 0.9), (0.0, 0.0)):
        assert verdict(difference, p, less_is_better=True) == NOT_BETTER
