"""Cross-entropy over choices and items won and lost: against the definitions, and against all that guessing can do."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alora_trainer.data.sources import read_lines
from alora_trainer.errors import ALoRAError
from alora_trainer.evaluation.choices import choice_figures, choice_losses, transitions
from tests.evaluation_fixtures import evaluate_as_json

_ITEMS = st.lists(
    st.lists(st.floats(-500, 0), min_size=2, max_size=5).flatmap(
        lambda scores: st.tuples(st.just(scores), st.integers(0, len(scores) - 1))
    ),
    min_size=2,
    max_size=8,
)


@given(_ITEMS)
def test_the_loss_is_torchs_cross_entropy(items: list[tuple[list[float], int]]) -> None:
    scores, targets = [list(one) for one, _ in items], [target for _, target in items]
    right = [
        float(torch.nn.functional.cross_entropy(torch.tensor([one], dtype=torch.float64), torch.tensor([target])))
        for one, target in items
    ]
    assert choice_losses(scores, targets) == pytest.approx(right, rel=1e-12, abs=1e-12)
    figures = choice_figures(scores, targets)
    assert figures["choice_cross_entropy"] == pytest.approx(sum(right) / len(right), abs=1e-12)
    deviations = sum((one - sum(right) / len(right)) ** 2 for one in right) / (len(right) - 1)
    assert figures["choice_cross_entropy_stderr"] == pytest.approx((deviations / len(right)) ** 0.5, abs=1e-9)
    assert figures["chance"] == pytest.approx(sum(1 / len(one) for one in scores) / len(scores))


def test_one_item_has_no_standard_error() -> None:
    assert np.isnan(choice_figures([[0.0, -1.0]], [0])["choice_cross_entropy_stderr"])


def test_an_evaluation_has_them(model: Any, tokenizer: Any, elements: tuple[Any, Path], tmp_path: Path) -> None:
    task, items = elements
    found = evaluate_as_json(
        model, tokenizer, general={}, tasks={task.name: items}, task_specs=[task], samples_path=tmp_path / "s.jsonl"
    )["tasks"][task.name]
    rows = read_lines(tmp_path / "s.jsonl")
    right = choice_losses([row["log_likelihoods"] for row in rows], [row["target"] for row in rows])
    assert found["choice_cross_entropy"] == pytest.approx(right.mean())
    assert found["chance"] == pytest.approx(np.mean([1 / len(row["log_likelihoods"]) for row in rows]))


@pytest.mark.parametrize("choices", [2, 3, 4])
def test_the_adjusted_shares_are_right_on_average_over_all_that_guessing_can_do(choices: int) -> None:
    """Three items, one known before and guessed after, one the other way round, one guessed both times; every outcome of the
    four guesses, each weighed by its probability."""
    luck = Fraction(1, choices)
    expected = dict.fromkeys(("lost", "won", "lost_adjusted", "won_adjusted"), 0.0)
    for guesses in itertools.product((0, 1), repeat=4):
        weight = 1
        for guess in guesses:
            weight *= luck if guess else 1 - luck
        before, after = [1, guesses[0], guesses[1]], [guesses[2], 1, guesses[3]]
        found = transitions(before, after, [choices] * 3)
        for name in expected:
            expected[name] += float(weight) * found[name]
    assert expected["lost_adjusted"] == pytest.approx(1 / 3, abs=1e-12)
    assert expected["won_adjusted"] == pytest.approx(1 / 3, abs=1e-12)
    assert expected["lost"] != pytest.approx(1 / 3, abs=1e-3)


def test_items_won_and_lost_are_counted() -> None:
    found = transitions([1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [2] * 5)
    assert (found["items"], found["lost"], found["won"]) == (5, 0.2, 0.2)
    assert found["lost_adjusted"] == pytest.approx((1 - 2) * 2 / 5)
    same = transitions([1, 1], [1, 1], [4, 4])
    assert same == {"items": 2, "lost": 0.0, "won": 0.0, "lost_adjusted": 0.0, "won_adjusted": 0.0}
    for wrong in (([], [], []), ([1], [1, 0], [2])):
        with pytest.raises(ALoRAError, match="of the same items"):
            transitions(*wrong)
