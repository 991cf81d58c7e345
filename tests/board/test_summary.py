"""What a board concludes, on rows whose curves are formulas; which trials are finals; what is refused in a board file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.board.board_file import read_board
from alora_trainer.experiment.board.choose import chosen_trials, operating_point
from alora_trainer.experiment.board.fronts import pareto_front
from alora_trainer.experiment.board.summary import summarise
from tests.board.made_up_board import DOCUMENTS, ITEMS, RULES, SEEDS, rows_with_finals
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
    # What lora's finals (.5, .7, .9, 1) save of l**2, by straight lines from (0, 0) on, and kfac's of a tenth of it.
    for name, gains, slope in (("lora", (0.5, 0.7, 0.9, 1.0), 1.0), ("kfac", (0.6, 0.8, 0.9, 1.1), 0.1)):
        read = np.interp(np.linspace(0, 1, 100001), [0, *gains], [0, *(slope * gain**2 for gain in gains)])
        assert numbers[name]["area"]["mean"] == pytest.approx(1 - read.mean(), abs=1e-4)
    assert numbers["kfac"]["taken"]["trial"] == "learning_rate=1.1"
    assert numbers["<b>low"]["taken"]["figures"]["learned"]["mean"] == pytest.approx(0.4)
    assert set(numbers["lora"]["taken"]["rises"]) == {"books", "code"}


def test_what_is_better_and_what_is_not_said_to_be() -> None:
    found = summarise(rows_with_finals(), RULES)
    said = {(one["row"], one["measure"]): one for one in found["comparisons"]}
    assert said["kfac", "rise_at_90"]["verdict"] == "better" and said["kfac", "rise_at_90"]["p_holm"] < 0.05
    assert said["kfac", "area"]["difference"] > 0 and said["kfac", "area"]["verdict"] == "better"
    assert said["<b>low", "rise_at_90"]["verdict"] == "not better" and said["<b>low", "rise_at_90"]["p"] is None
    assert said["<b>low", "accuracy"]["difference"] == pytest.approx(-0.12, abs=0.08)
    assert said["<b>low", "rise"]["verdict"] == "better" and said["<b>low", "choices"]["verdict"] == "worse"
    assert said["kfac", "rise"]["over"] == "documents" and said["kfac", "rise_at_95"]["over"] == "seeds"
    # Two tests of one measure: the smaller P value counts twice.
    pair = [said[name, "choices"] for name in ("kfac", "<b>low")]
    small, large = sorted(pair, key=lambda one: one["p"])
    assert small["p_holm"] == pytest.approx(min(1, 2 * small["p"])) and large["p_holm"] >= small["p_holm"]
    assert said["kfac", "rise"]["units"] == DOCUMENTS and said["kfac", "choices"]["units"] == ITEMS
    assert said["kfac", "area"]["units"] == len(SEEDS) and found["noise"]["learned"]["df"] == len(SEEDS) - 1


def test_what_is_shown_does_not_depend_on_what_is_finished() -> None:
    """A P value is corrected for all comparisons that the board plans."""
    alone = summarise(rows_with_finals()[:2], RULES)
    whole = {(one["row"], one["measure"]): one for one in summarise(rows_with_finals(), RULES)["comparisons"]}
    for one in alone["comparisons"]:
        assert one["row"] == "kfac" and one["p_holm"] == pytest.approx(min(1, 2 * one["p"]))
        beside = whole["kfac", one["measure"]]
        assert beside["p"] == one["p"] and beside["p_holm"] <= one["p_holm"]
    # <b>low learned too little to be read at 90 %: kfac's P value counts twice all the same.
    assert whole["<b>low", "rise_at_90"]["p"] is None
    assert whole["kfac", "rise_at_90"]["p_holm"] == pytest.approx(min(1, 2 * whole["kfac", "rise_at_90"]["p"]))


def test_a_final_that_another_beats_is_on_no_curve() -> None:
    """A row is read at the settings that are worth having: a rate that learns less and forgets more takes nothing from it."""
    rows = rows_with_finals(noise=0.0)
    lora, kfac = rows[:2]
    before = {row["row"]: row for row in summarise(rows, RULES)["rows"]}["kfac"]
    best, worst = kfac.chosen[-1], kfac.chosen[0]
    for seed in SEEDS:
        kfac.finals[worst][seed] = {**kfac.finals[best][seed], "learned": 0.97, "rise": 0.9}
    assert len(kfac.curves(SEEDS)[0]) == len(kfac.chosen) - 1 == 3
    after = {row["row"]: row for row in summarise(rows, RULES)["rows"]}["kfac"]
    assert after["equal"]["rise_at_95"]["mean"] == pytest.approx(before["equal"]["rise_at_95"]["mean"])
    # With one seed alone it is only chance: it stays on the curve.
    kfac.finals[worst] = {
        seed: {**kfac.finals[worst][seed], "learned": 0.0 if seed else 2.0, "rise": 0.0} for seed in SEEDS
    }
    assert len(kfac.curves(SEEDS)[0]) == len(kfac.chosen)
    kfac.finals[worst][1] = {**kfac.finals[worst][1], "rise": float("nan")}
    broken = {row["row"]: row for row in summarise(rows, RULES)["rows"]}["kfac"]
    assert broken["area"]["mean"] is None and broken["equal"]["rise_at_90"]["each"]["1"] is None


def test_documents_are_drawn_with_their_tokens() -> None:
    """What is drawn is a loss a token: with every token's loss higher by the same, however long the documents, it is sure."""
    rows = rows_with_finals()
    lora, kfac = rows[:2]
    for place in kfac.chosen:
        for seed in SEEDS:
            other = lora.samples[lora.chosen[0]][seed]
            noise = np.random.default_rng(seed + 7).normal(0, 1e-4, DOCUMENTS)
            kfac.samples[place][seed] = replace(other, loss=other.loss + other.tokens * (0.05 + noise))
    for place in lora.chosen:
        lora.samples[place] = lora.samples[lora.chosen[0]]
    (one,) = (one for one in summarise(rows, RULES)["comparisons"] if (one["row"], one["measure"]) == ("kfac", "rise"))
    assert one["difference"] == pytest.approx(0.05, abs=1e-4)
    assert one["high"] - one["low"] < 2e-4  # a sum over a fixed number of tokens varied by a quarter of itself


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
