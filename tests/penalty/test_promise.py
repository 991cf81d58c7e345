"""A promise on general loss: its limit covers what it says, its tests in a fixed order err no more than it says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alora_trainer.penalty.strength.promise import (
    LEAST_SEQUENCES,
    Bound,
    bound_of,
    chosen_scale,
    in_fixed_order,
    order_around,
    promised,
    student_quantile,
)

RISE = 0.01


def losses(chance: np.random.Generator, kind: str, count: int, rise: float = RISE) -> tuple[list[float], list[float]]:
    """Losses of the same sequences before and after, whose true rise (of the means) is `rise`."""
    before = chance.gamma(16.0, 200 / 16, size=count)
    noise = {
        "normal": lambda: chance.normal(0.0, 4.0, size=count),
        "skewed": lambda: chance.gamma(0.5, 4.0, size=count) - 2.0,
        "skewed to the left": lambda: 2.0 - chance.gamma(0.5, 4.0, size=count),
        "in proportion": lambda: before * chance.normal(0.0, 0.02, size=count),
    }[kind]()
    return before.tolist(), (before * (1 + rise) + noise).tolist()


def test_the_quantile_is_students() -> None:
    stats = pytest.importorskip("scipy.stats")
    for freedom in (5, 9, 29, 99, 1000):
        for probability in (0.5, 0.9, 0.95, 0.99):
            assert student_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), abs=2e-3)


def test_the_rise_and_its_error_are_those_of_a_ratio_of_sums() -> None:
    """By the jackknife, which knows no formula: for a ratio, its error agrees to first order."""
    before, after = losses(np.random.default_rng(0), "in proportion", 200)
    found = bound_of(before, after)
    assert found.rise == pytest.approx(sum(after) / sum(before) - 1, rel=1e-12)
    without = [(sum(after) - now) / (sum(before) - then) - 1 for then, now in zip(before, after, strict=True)]
    jackknife = math.sqrt(199 / 200 * sum((one - np.mean(without)) ** 2 for one in without))
    assert found.error == pytest.approx(jackknife, rel=0.02)


def test_a_loss_that_rises_alike_everywhere_leaves_no_doubt() -> None:
    before = [float(number) for number in range(100, 170)]
    found = bound_of(before, [1.02 * one for one in before])
    assert (found.rise, found.upper) == (pytest.approx(0.02), pytest.approx(0.02))
    assert found.keeps(0.0201) and not found.keeps(0.0199)


@pytest.mark.parametrize("count", [LEAST_SEQUENCES, 200])
@pytest.mark.parametrize("kind", ["normal", "skewed", "skewed to the left", "in proportion"])
def test_the_limit_covers_the_true_rise_as_often_as_it_says(kind: str, count: int) -> None:
    chance = np.random.default_rng(count)
    trials = 1000
    covered = sum(bound_of(*losses(chance, kind, count)).upper >= RISE for _ in range(trials)) / trials
    assert covered >= (0.92 if (kind, count) == ("skewed", LEAST_SEQUENCES) else 0.93)
    assert covered <= (0.985 if kind.startswith("skewed to") else 0.975)  # and it is no wider than need be


def test_skewness_to_the_right_is_paid_for_and_to_the_left_is_not() -> None:
    before = [100.0] * 40
    right = bound_of(before, [101.0] * 36 + [111.0] * 4)
    left = bound_of(before, [103.0] * 36 + [93.0] * 4)
    quantiles = [(one.upper - one.rise) / one.error for one in (right, left)]
    assert quantiles[0] > quantiles[1] == pytest.approx(student_quantile(0.95, 39))


def test_what_is_chosen_in_a_fixed_order_is_wrong_no_more_often_than_one_test() -> None:
    """Scale s has the rise 0.02 s: from 0.5 on, every promise is wrong. Choosing the best of all that pass would be wrong more
    often: the noise of the scales is hardly the same here."""
    chance = np.random.default_rng(1)
    trials, wrong, best_of_all = 800, 0, 0
    for _ in range(trials):

        def measure(scale: float) -> Bound:
            return bound_of(*losses(chance, "normal", 60, rise=0.02 * scale * 1.001))

        scales = [0.5, 0.505, 0.51, 0.515]
        tested = in_fixed_order([0.1, 0.3, *scales], measure, 0.01)
        found = promised(tested, 0.01)
        wrong += found is not None and found.scale >= 0.5
        best_of_all += any(measure(scale).keeps(0.01) for scale in scales)
    assert wrong / trials <= 0.05 + 0.02
    assert best_of_all / trials > 0.07


@given(st.floats(0.0, 2.0), st.floats(0.001, 0.05), st.sampled_from([1.0, 2.0]))
def test_the_chosen_scale_is_where_the_budget_ends_whatever_the_curve(
    edge: float, budget: float, largest: float
) -> None:
    """With a limit that is the budget at `edge` and is no parabola from the base: it is above zero without any movement."""

    def measure(scale: float) -> Bound:
        return Bound(0.0, 0.0, budget * (1 + scale - edge), 100)

    found = chosen_scale(measure, budget, largest)
    assert found == largest if edge >= largest else found <= max(edge, largest / 128) + 1e-9
    used = measure(found).upper / budget
    assert found >= min(edge, largest) - largest / 128 or used >= 0.96


@given(st.floats(0.0, 1.0), st.floats(1.05, 100.0))
def test_of_a_curve_as_rises_are_few_scales_are_tried(bend: float, excess: float) -> None:
    """A limit with a part that grows with the scale (noise) and one that grows with its square (the rise)."""
    asked: list[float] = []

    def measure(scale: float) -> Bound:
        asked.append(scale)
        return Bound(0.0, 0.0, excess * 0.01 * (bend * scale**2 + (1 - bend) * scale), 100)

    found = chosen_scale(measure, 0.01)
    assert 0.96 * 0.01 <= measure(found).upper <= 0.01
    assert len(asked) - 1 <= 5  # by halving alone eight


def test_a_curve_that_is_nearly_a_parabola_takes_three_tries() -> None:
    asked: list[float] = []

    def measure(scale: float) -> Bound:
        asked.append(scale)
        return Bound(0.0, 0.0, 0.02 * (0.9 * scale**2 + 0.1 * scale), 100)

    assert measure(chosen_scale(measure, 0.01)).keeps(0.01)
    assert len(asked) - 1 <= 4  # the largest, and three


@given(st.floats(1 / 128, 2.0), st.sampled_from([1.0, 1.5, 2.0]))
def test_the_order_of_the_tests_rises_to_the_largest_at_most_and_has_the_chosen_scale(
    scale: float, largest: float
) -> None:
    order = order_around(min(scale, largest), largest)
    assert order == sorted(set(order)) and order[-1] <= largest
    assert any(one == pytest.approx(min(scale, largest)) for one in order)


def test_tests_end_with_the_first_failure() -> None:
    asked: list[float] = []

    def measure(scale: float) -> Bound:
        asked.append(scale)
        return Bound(0.0, 0.0, 0.02 if scale == 0.3 else 0.0, 100)

    tested = in_fixed_order([0.1, 0.2, 0.3, 0.4], measure, 0.01)
    assert asked == [0.1, 0.2, 0.3] == [one.scale for one in tested]
    found = promised(tested, 0.01)
    assert found is not None and found.scale == 0.2
    assert promised(tested[2:], 0.01) is None


def test_few_sequences_promise_nothing() -> None:
    before = [100.0 + number for number in range(LEAST_SEQUENCES - 1)]
    assert not bound_of(before, before).keeps(0.01)
    assert bound_of([*before, 99.0], [*before, 99.0]).keeps(0.01)
    assert bound_of([1.0], [1.0]).upper == math.inf


def test_how_much_text_is_needed_is_about_enough() -> None:
    chance = np.random.default_rng(2)
    few = bound_of(*losses(chance, "normal", 60, rise=0.0085))
    needed = few.sequences_for(0.01)
    assert needed is not None and needed > 60 and not few.keeps(0.01)

    def kept(count: int) -> int:
        return sum(bound_of(*losses(chance, "normal", count, rise=few.rise)).keeps(0.01) for _ in range(100))

    assert kept(3 * needed) > 75  # 88 in the mean, by the normal distribution
    assert kept(needed) < 70  # 50
    assert Bound(0.02, 0.001, 0.022, 100).sequences_for(0.01) is None
