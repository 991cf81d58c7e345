"""What a board concludes, on rows whose curves are formulas; which trials are finals; what is refused in a board file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.board.board_file import read_board
from alora_trainer.experiment.board.choose import chosen_trials, operating_point
from alora_trainer.experiment.board.fronts import pareto_front
from alora_trainer.experiment.board.summary import summarise
from tests.board.made_up_board import RULES, SEEDS, rows_with_finals
from tests.board.tiny_board import write_board_file
from tests.tiny_recipe import SETTINGS

_POINTS = st.lists(st.tuples(st.floats(-1, 3), st.floats(-1, 3)), min_size=1, max_size=8)


@given(_POINTS, st.floats(-1, 3), st.none() | st.integers(1, 5))
def test_finals_are_of_the_front_and_on_both_sides_of_the_target(
    points: list[tuple[float, float]], target: float, most: int | None
) -> None:
    chosen = chosen_trials(points, target, most)
    front = pareto_front(points)
    able = [place for place in front if points[place][0] > 0] or front[-1:]
    assert set(chosen) <= set(able) and len(chosen) == min(len(able), most or len(able))
    assert chosen == [place for place in front if place in chosen]
    if most is not None and most > 1 and len(able) > 1:
        for side in (lambda gain: gain >= target, lambda gain: gain < target):
            on_it = [place for place in able if side(points[place][0])]
            nearest = min(on_it, key=lambda place: abs(points[place][0] - target), default=None)
            assert nearest is None or nearest in chosen
    assert able[-1] in chosen_trials(points, target, most, top=True)


def test_the_point_that_one_would_take() -> None:
    points = [(0.5, 0.1), (0.9, 0.3), (1.0, 0.2), (1.2, 0.9)]
    assert operating_point(points, 0.9) == 2 and operating_point(points, 0.4) == 0
    assert operating_point(points, 1.1) == 3 and operating_point(points, 5) == 3


def test_formulas_come_out() -> None:
    """Without noise, all seeds agree with the formula, but for what lies between two points."""
    rows = rows_with_finals(noise=0.0)
    found = summarise(rows, RULES)
    assert found["reference"]["learned"]["mean"] == 1.0 and found["reference"]["forgotten"]["mean"] == pytest.approx(
        0.2
    )
    numbers = {row["row"]: row for row in found["rows"]}
    assert numbers["lora"]["equal"]["rise_at_90"]["mean"] == pytest.approx(0.2 * 0.81)
    assert numbers["lora"]["equal"]["rise_at_95"]["mean"] == pytest.approx(0.2 * (0.81 + 1) / 2)
    assert numbers["kfac"]["equal"]["rise_at_90"]["mean"] == pytest.approx(0.02 * 0.81)
    assert numbers["<b>low"]["equal"]["rise_at_90"]["mean"] is None
    assert numbers["kfac"]["equal"]["rise_at_95"]["sd"] == 0
    # A square of what lora learned and forgot: of its own finals (.5, .7, .9, 1) rectangles over (l / 1, 1 - l**2).
    area = 0.5 * (1 - 0.25) + 0.2 * (1 - 0.49) + 0.2 * (1 - 0.81)
    assert numbers["lora"]["hypervolume"]["mean"] == pytest.approx(area)
    assert numbers["kfac"]["taken"]["trial"] == "learning_rate=1.1"
    assert numbers["<b>low"]["taken"]["figures"]["learned"]["mean"] == pytest.approx(0.4)
    assert set(numbers["lora"]["taken"]["rises"]) == {"books", "code"}


def test_what_is_better_and_what_is_not_said_to_be() -> None:
    found = summarise(rows_with_finals(), RULES)
    said = {(one["row"], one["measure"]): one for one in found["comparisons"]}
    assert said["kfac", "rise_at_90"]["verdict"] == "better" and said["kfac", "rise_at_90"]["p_holm"] < 0.05
    assert said["kfac", "hypervolume"]["difference"] > 0 and said["kfac", "hypervolume"]["verdict"] == "better"
    assert said["<b>low", "rise_at_90"]["verdict"] == "not better" and said["<b>low", "rise_at_90"]["p"] is None
    assert said["<b>low", "accuracy"]["difference"] == pytest.approx(-0.12, abs=0.08)
    assert said["<b>low", "rise"]["verdict"] == "better" and said["<b>low", "choices"]["verdict"] == "worse"
    assert said["kfac", "rise"]["over"] == "documents" and said["kfac", "rise_at_95"]["over"] == "seeds"
    # Two tests of one measure: the smaller P value counts twice.
    pair = [said[name, "choices"] for name in ("kfac", "<b>low")]
    small, large = sorted(pair, key=lambda one: one["p"])
    assert small["p_holm"] == pytest.approx(min(1, 2 * small["p"])) and large["p_holm"] >= small["p_holm"]
    assert found["noise"]["learned"]["df"] == 4 * (len(SEEDS) - 1)


def test_two_rows_that_others_are_compared_with_meet_once() -> None:
    rules = RULES.__class__(**{**vars(RULES), "against": ("lora", "kfac")})
    pairs = {(one["row"], one["against"]) for one in summarise(rows_with_finals(), rules)["comparisons"]}
    assert pairs == {("kfac", "lora"), ("<b>low", "lora"), ("<b>low", "kfac")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"row": {}}, "unknown key row: did you mean rows"),
        ({"trials": None}, "has no trials"),
        ({"trials": 3}, "rows.lora.grid has 2 trials, and the board says trials: 3"),
        ({"reference": "lroa"}, "did you mean rows.lora"),
        ({"against": ["kfac"]}, "unknown key rows.kfac"),
        ({"rows": {"lorra": {"grid": {"a": [1, 2]}}}}, "did you mean"),
        ({"rows": {"base": {"grid": {"a": [1, 2]}}}}, "base trains nothing"),
        ({"rows": {"lora": {"grid": {"a": [1, 1]}}}}, "has a=1 twice"),
        ({"rows": {"lora": {"grid": {"a": 1}}}}, "a list of values"),
        ({"rows": {"lora": {"girds": {}}}}, "did you mean rows.lora.grid"),
        ({"rows": {"../x": {"method": "lora", "grid": {"a": [1, 2]}}}}, "name of a row"),
        ({"models": {"a/b": {}}}, "must be a name"),
        ({"tasks": {"sums": {"recipe": "none.yaml", "validation": {"a": 1}}}}, "there is no file"),
        ({"tasks": {"sums": {"recipe": "recipe.yaml"}}}, "has no validation"),
        ({"settings": {"seed": 1}}, "the board's own"),
        ({"finals": {"points": 0}}, "whole number of at least 1, or pareto"),
        ({"finals": {"seeds": "a"}}, "--seeds"),
        ({"shares": [0.9, 2]}, "shares="),
        ({"published": ["none.json"]}, "there is no file"),
        ({"validation": {"sed": 1}}, "did you mean validation.seed"),
    ],
)
def test_what_a_board_file_may_not_say(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(str(SETTINGS))
    with pytest.raises(ALoRAError, match=message):
        read_board(write_board_file(tmp_path / "board.yaml", **changes))


def test_grids_are_products_and_lists_of_them(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(str(SETTINGS))
    rows = {
        "lora": {"grid": {"tune.learning_rate": [1e-3, 2e-3, 4e-3, 8e-3]}},
        "replay": {"grid": {"tune.learning_rate": [1e-3, 2e-3], "weight": [1, 4]}},
        "both": {
            "method": "kfac",
            "grid": [{"alora.lam": [0.1, 1]}, {"alora.lam": [10.0], "tune.learning_rate": [1, 2]}],
        },
    }
    board = read_board(write_board_file(tmp_path / "board.yaml", rows=rows, trials=4, finals={"points": "pareto"}))
    assert board.points is None and board.seeds == (0, 1, 2) and board.against == ("lora",)
    assert [trial.label for trial in board.row("replay").trials][:2] == [
        "learning_rate=0.001, weight=1", "learning_rate=0.001, weight=4"
    ]  # fmt: skip
    both = board.row("both")
    assert [trial.label for trial in both.trials][1:3] == ["lam=1", "lam=10, learning_rate=1"]
    assert both.overrides(both.trials[0]) == {"method_options.kfac.alora.lam": "0.1"}
    assert both.variant(both.trials[2]) == "both,lam=10,learning_rate=1"
    assert [row.name for row in board.only(["both"])] == ["lora", "both"]
    with pytest.raises(ALoRAError, match="did you mean rows.both"):
        board.only(["bothh"])
