"""Tables of the documentation have the figures of the committed results, and no others."""

from __future__ import annotations

import importlib
import json
import statistics
from pathlib import Path

import pytest

from alora_trainer.experiment.board.page import render_picture
from alora_trainer.experiment.board.text_table import board_tables
from tests.docs.pages import ROOT
from tests.docs.small_board import OPENBOOK, SCIQ, SmallBoard


def test_how_many_tokens_and_directions_are_enough() -> None:
    found = json.loads((ROOT / "results" / "studies" / "curvature-study-sciq-passages.json").read_text())
    page = (ROOT / "docs" / "recording.md").read_text(encoding="utf-8")
    size = {run["name"]: f"{run['bytes'] / 1e6:.1f}" for run in found["runs"] if "bytes" in run}
    for row in found["summary"]:
        rise, choices, accuracy = (
            row[key]["mean"] for key in ("rise_of_general_cross_entropy", "choice_cross_entropy", "accuracy")
        )
        name = row["name"]
        assert f"| {name} | {size.get(name, '')} | {rise:.4f} | {choices:.3f} | {accuracy:.3f} |" in page
    assert f"(base {found['base']['0']['choice_cross_entropy']:.3f})" in page and "--lam 0.001" in page
    assert found["lam"] == 0.001 and found["settings"]["domain.test_items"] == "250"


def test_which_engine_for_which_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    plan_sizes = importlib.import_module("plan_sizes")
    found = json.loads((ROOT / "results" / "benchmarks" / "plan-sizes.json").read_text())
    assert plan_sizes.format_table(found["rows"]) in (ROOT / "docs" / "launching.md").read_text(encoding="utf-8")


def test_the_fit_of_the_demo() -> None:
    found = json.loads((ROOT / "results" / "studies" / "fit-demo.json").read_text())
    page = " ".join((ROOT / "docs" / "fit.md").read_text(encoding="utf-8").split())
    rise, accuracy = found["promise"]["rise"], found["accuracy"]
    assert f"from {100 * accuracy['base']:.1f} to {100 * accuracy['adapter']:.1f} %" in page
    assert f"rose by {100 * rise['rise']:.2f} %" in page
    assert f"confidence by {100 * rise['upper']:.2f} % at most" in page
    assert found["promise"]["kept"] and f"{found['wall_seconds']:.0f} seconds on two" in page


def test_the_fits_and_their_promises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    fit_promise = importlib.import_module("fit_promise")
    found = json.loads((ROOT / "results" / "studies" / "fit-promise.json").read_text())
    page = (ROOT / "docs" / "fit.md").read_text(encoding="utf-8")
    assert fit_promise.format_table(found["summary"]) in page
    promised, held = (sum(row[key] for row in found["summary"]) for key in ("promised", "held_on_test"))
    done, planned = found["fits"]["done"], found["fits"]["planned"]
    said = f"{done} of {planned} fits are made, {promised} of them could promise, and {held} of these held"
    assert said in " ".join(page.split()) and done == len(found["cells"])
    said = " ".join(page.split())
    times: dict[str, list[float]] = {}
    for row in found["summary"]:
        times.setdefault(row["task"], []).append(row["rise_on_other_kinds"]["mean"] / row["rise_on_test"]["mean"])
    tasks = times["sciq"] + times["openbookqa"]
    assert f"SciQ and OpenBookQA forget {min(tasks):.1f} to {max(tasks):.1f} times as much" in said
    assert f"those of the chat file {min(times['chat']):.1f} to {max(times['chat']):.1f} times" in said
    used = [row["rise_on_test"]["mean"] / row["budget"] for row in found["summary"]]
    assert f"{min(used):.1f} to {max(used):.1f} of it was used on test text" in said
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert (
        f"of {done} fits on that model" in readme and f"{promised} promised and kept it" in readme and held == promised
    )
    gained = {row["budget"]: row["accuracy_gained"]["mean"] for row in found["summary"] if row["task"] == "sciq"}
    assert f"gains {100 * gained[0.005]:.1f} points of accuracy for 0.5 % and {100 * gained[0.02]:.1f} for 2 %" in said
    assert f"with 1 % SciQ gained {100 * gained[0.01]:.1f} points of accuracy" in readme
    assert {f"{100 * cell['accuracy_base']:.1f}" for cell in found["cells"] if cell["task"] == "sciq"} == {"37.3"}


def test_fits_beside_the_boards_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    fit_beside = importlib.import_module("fit_beside")
    found = json.loads((ROOT / "results" / "studies" / "fit-beside.json").read_text())
    page = (ROOT / "docs" / "fit.md").read_text(encoding="utf-8")
    said = " ".join(page.split())
    assert fit_beside.format_table(found["summary"]) in page and "three seeds of each task" in page
    assert set(found["rivals"]) == {f"{task}-{seed}" for task in ("sciq", "openbookqa") for seed in range(3)}
    assert len(found["compared"]) == 18
    sciq, openbook = ([fit for fit in found["compared"] if fit["task"] == task] for task in ("sciq", "openbookqa"))
    ahead = {
        fit["name"]: fit["choices_fell"] > max(rival["choices_fell"] for rival in fit["rivals"].values())
        for fit in found["compared"]
    }
    assert all(ahead[fit["name"]] for fit in sciq)
    assert [ahead[fit["name"]] for fit in openbook] == [fit["seed"] == 2 for fit in openbook]
    assert all(one["accuracy_gained"] < 0 for fit in openbook for one in (fit, *fit["rivals"].values()))
    less = [
        statistics.fmean(f["rivals"]["kfac"]["choices_fell"] - f["choices_fell"] for f in openbook if f["seed"] == seed)
        for seed in (0, 1)
    ]
    assert f"less than `kfac` (by {less[0]:.3f} and {less[1]:.3f} on average" in said
    lowest = [fit for fit in openbook if fit["budget"] == 0.005]
    own = statistics.stdev(fit["choices_fell"] for fit in lowest)
    rival = statistics.stdev(fit["rivals"]["kfac"]["choices_fell"] for fit in lowest)
    assert f"varies by {own:.3f}, `kfac`'s by {rival:.3f}, at 0.5 %" in said

    def means(fits: list[dict[str, float]], key: str) -> str:
        budgets = sorted({fit["budget"] for fit in fits})
        each = [100 * statistics.fmean(fit[key] for fit in fits if fit["budget"] == budget) for budget in budgets]
        return f"{each[0]:.2f}, {each[1]:.2f} and {each[2]:.2f} %"

    assert f"rose by {means(sciq, 'rise')} (means over seeds)" in said
    assert f"where their promises' passages rose by {means(sciq, 'promised_rise')};" in said
    assert f"OpenBookQA's by {means(openbook, 'rise')} for {means(openbook, 'promised_rise')}." in said


def test_the_tables_of_the_small_board(board: SmallBoard) -> None:
    assert board_tables(board.whole) in board.page


def test_the_picture_of_the_small_board(tmp_path: Path) -> None:
    """README's first picture is drawn from the committed figures."""
    drawn = render_picture([ROOT / "results" / "board-small.json"], tmp_path / "board.svg")
    assert drawn.read_text(encoding="utf-8") == (ROOT / "results" / "board-small.svg").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "](results/board-small.svg)](docs/board.md#the-small-board-so-far)" in readme


def test_what_the_small_board_says_of_equal_learning(board: SmallBoard) -> None:
    said, area, tested, alone = board.said, board.area, board.tested, board.alone
    held = ("kfac", "replay", "ewclora_true")
    rise = {row: board.rows[OPENBOOK, row]["equal"]["rise_at_90"]["mean"] for row in (*held, "lora", "mlp_only")}
    at = {row: f"{value:.3f}" for row, value in rise.items()}
    kfac, replay, ewclora = (at[row] for row in held)
    assert (
        f"{kfac} nats a token with `kfac`, {replay} with `replay`, {ewclora} with EWCLoRA and {at['lora']} with LoRA"
        in said
    )
    assert f"the areas are {', '.join(area[OPENBOOK, row] for row in held)} and {area[OPENBOOK, 'lora']}." in said
    pairs = [(OPENBOOK, measure, row) for row in held for measure in ("rise_at_90", "area")]
    assert f"has P of at most {max(alone[pair] for pair in pairs):.3f} by itself" in said
    least = min(tested[pair] for pair in pairs)
    assert f"the {board.planned} comparisons that the board plans (P = {least:.2f} or more)" in said and least > 0.05
    own = "kfac_natural"
    far = [board.rows[OPENBOOK, row]["equal"]["rise_at_95"]["mean"] for row in (own, "lora")]
    sure = [tested[OPENBOOK, measure, own] for measure in ("rise_at_95", "area")]
    assert f"`{own}` at 95 %: {far[0]:.3f} for LoRA's {far[1]:.3f} (P = {sure[0]:.3f}; its area" in said
    assert f"its area, {area[OPENBOOK, own]}, P = {sure[1]:.2f})" in said
    assert board.better(OPENBOOK) == {(own, "rise_at_95")} and not board.better(SCIQ)  # "what is left"
    assert not any(board.better(task, "ewclora_true") for task in (SCIQ, OPENBOOK))


def test_what_the_small_board_says_of_areas(board: SmallBoard) -> None:
    said, area, tested = board.said, board.area, board.tested
    own, kfac = ([area[task, row] for task in (SCIQ, OPENBOOK)] for row in ("kfac_natural", "kfac"))
    assert f"({own[0]} on SciQ, `kfac` {kfac[0]}; {own[1]} on OpenBookQA, `kfac` {kfac[1]})" in said
    held = ("kfac", "ewclora_true", "alora", "replay")
    for task in (SCIQ, OPENBOOK):
        assert all(float(area[task, "kfac_natural"]) >= float(area[task, row]) for row in held)
        assert all(float(area[task, "kfac"]) >= float(area[task, row]) for row in ("ewclora_true", "alora", "replay"))
    error = board.rows[SCIQ, "kfac_natural"]["area"]["error"]
    assert f"its area varies ({own[0]} ± {error:.2f})" in said
    assert f"area {own[0]} for {kfac[0]} on SciQ and {own[1]} for {kfac[1]} on OpenBookQA" in said
    alone = "lora_contrastive_frozen"
    near = board.rows[OPENBOOK, alone]["equal"]["rise_at_90"]["mean"]
    sure = " and ".join(f"{tested[OPENBOOK, measure, alone]:.2f}" for measure in ("rise_at_90", "area"))
    assert f"an area of {area[OPENBOOK, alone]} on OpenBookQA ({near:.3f} at 90 %; P = {sure})" in said
    assert f"and of {area[SCIQ, alone]} on SciQ (LoRA {area[SCIQ, 'lora']}), where no seed" in said
    assert not any(each is not None for each in board.rows[SCIQ, alone]["equal"]["rise_at_90"]["each"].values())
    assert f"(area {area[SCIQ, 'replay']} for {area[SCIQ, 'lora']})" in said
    pairs = [f"{area[task, 'kfac']} and {area[task, 'ewclora_true']}" for task in (SCIQ, OPENBOOK)]
    assert f"(areas {pairs[0]}, {pairs[1]})" in said
    sciq = [f"{area[SCIQ, row]} ({name})" for row, name in (("kfac", "`kfac`"), ("ewclora_true", "EWCLoRA"))]
    noise = board.whole["results"][0]["noise"]["learned"]["difference"]
    assert f"{sciq[0]}, {sciq[1]} and {area[SCIQ, 'lora']} (LoRA); the noise of what is learned is {noise:.3f}," in said
    mlp = [f"{area[task, 'mlp_only']} for {area[task, 'lora']}" for task in (SCIQ, OPENBOOK)]
    assert f"(areas {mlp[0]} on SciQ, {mlp[1]} on OpenBookQA)" in said
    (result,) = (one for one in board.whole["results"] if one["task"] == SCIQ)
    (worse,) = (one for one in result["comparisons"] if one["over"] == "seeds" and one["verdict"] == "worse")
    assert (worse["row"], worse["against"], worse["measure"]) == ("mlp_only", "ewclora_true", "area")
    assert f"smaller than EWCLoRA's (P = {worse['p_holm']:.3f})" in said
    read = [board.rows[OPENBOOK, row]["equal"]["rise_at_90"]["mean"] for row in ("mlp_only", "lora")]
    assert f"On OpenBookQA it is as good ({read[0]:.3f} for {read[1]:.3f} at 90 %)" in said
    notes = " ".join((ROOT / "docs" / "lab-notes.md").read_text(encoding="utf-8").split())
    by_itself, sure = (tests[OPENBOOK, "area", "kfac"] for tests in (board.alone, tested))
    assert f"P = {by_itself:.3f} by itself, and {sure:.2f} after the correction" in notes
    paper = [f"{area[task, 'alora']} for {area[task, 'lora']}" for task in (SCIQ, OPENBOOK)]
    assert f"areas {paper[0]} on SciQ, {paper[1]} on OpenBookQA." in said


def test_what_the_small_board_says_of_settings(board: SmallBoard) -> None:
    said, figures = board.said, board.figures
    fisher = figures[SCIQ, "ewclora_true", "learning_rate=0.004, lam=0.01"]
    curvature = figures[SCIQ, "kfac", "learning_rate=0.002, lam=0.0003"]
    assert f"learned {fisher['learned']:.3f} where general loss rose by {fisher['rise']:.3f}" in said
    assert f"and `kfac` {curvature['learned']:.3f} where" in said and abs(fisher["rise"] - curvature["rise"]) < 0.001
    natural = [figures[task, "kfac_natural", "learning_rate=0.002, lam=0.0003"] for task in (SCIQ, OPENBOOK)]
    rose = f"where general loss rises by {natural[0]['rise']:.3f}"
    before = f"(`kfac` {curvature['learned']:.3f} and {curvature['rise']:.3f})"
    assert f"On SciQ it learns {natural[0]['learned']:.3f} {rose} {before}" in said
    held = figures[OPENBOOK, "kfac", "learning_rate=0.004, lam=0.001"]
    free = figures[OPENBOOK, "lora", "learning_rate=0.002"]
    both = [f"{one['learned']:.3f} and {one['rise']:.3f}" for one in (natural[1], held, free)]
    assert f"on OpenBookQA {both[0]} (`kfac` {both[1]}, LoRA {both[2]})" in said
    fast, slow = (figures[SCIQ, "lora", f"learning_rate={rate}"] for rate in ("0.002", "0.001"))
    assert f"LoRA forgets {fast['rise']:.3f} at 0.002 and {slow['rise']:.3f} at 0.001" in said
    assert f"and learns {fast['learned']:.3f} and {slow['learned']:.3f}" in said
    one, other = (figures[task, "kfac", "learning_rate=0.002, lam=0.001"] for task in (SCIQ, OPENBOOK))
    assert f"learns {one['learned']:.3f} there and forgets {one['rise']:.3f}" in said
    shares = [100 * each["rise"] / board.base for each in (one, other)]
    assert f"forgot {shares[0]:.1f} % of general loss on SciQ and {shares[1]:.1f} % on OpenBookQA" in said
    elementwise = 100 * figures[SCIQ, "alora", "learning_rate=0.002, lam=0.01"]["rise"] / board.base
    assert f"with 0.01 `alora` forgot {elementwise:.1f} % on SciQ" in said
