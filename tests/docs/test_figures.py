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
    said, area, tested = board.said, board.area, board.tested
    at = {
        row: f"{board.rows[OPENBOOK, row]['equal']['rise_at_90']['mean']:.3f}"
        for row in ("kfac", "replay", "ewclora_true", "lora")
    }
    assert (
        f"{at['kfac']} nats a token with `kfac`, {at['replay']} with `replay`, {at['ewclora_true']} with EWCLoRA"
        in said
    )
    assert f"EWCLoRA and {at['lora']} with LoRA" in said
    assert f"(P = {tested[OPENBOOK, 'rise_at_90', 'kfac']:.3f}); its area" in said
    (both,) = {f"{tested[OPENBOOK, 'hypervolume', row]:.3f}" for row in ("kfac", "replay")}
    areas = ", LoRA ".join((f"{area[OPENBOOK, 'kfac']}, {area[OPENBOOK, 'replay']}", area[OPENBOOK, "lora"]))
    assert f"({areas}; both P = {both})" in said
    chosen = [area[task, "kfac_natural"] for task in (SCIQ, OPENBOOK)]
    assert f"largest area on SciQ ({chosen[0]}; `kfac` {area[SCIQ, 'kfac']}) and the same" in said
    assert f"on OpenBookQA ({chosen[1]})." in said and chosen[1] == area[OPENBOOK, "kfac"]
    error = board.rows[SCIQ, "kfac_natural"]["hypervolume"]["error"]
    assert f"varies too much ({chosen[0]} ± {error:.2f})" in said
    far = [board.rows[OPENBOOK, row]["equal"]["rise_at_95"] for row in ("kfac_natural", "lora", "kfac")]
    assert f"at {far[0]['mean']:.3f} for LoRA's {far[1]['mean']:.3f}" in said and far[2]["mean"] is None
    assert f"(P = {tested[OPENBOOK, 'rise_at_95', 'kfac_natural']:.3f}), where `kfac` did not" in said
    assert (
        f"area {chosen[0]} for {area[SCIQ, 'kfac']} on SciQ and {chosen[1]} for {area[OPENBOOK, 'kfac']} on Open"
        in said
    )
    alone = "lora_contrastive_frozen"
    near = board.rows[OPENBOOK, alone]["equal"]["rise_at_90"]["mean"]
    sure = tested[OPENBOOK, "rise_at_90", alone]
    assert f"an area of {area[OPENBOOK, alone]} on OpenBookQA ({near:.3f} at 90 %, P = {sure:.3f})" in said
    assert f"and of {area[SCIQ, alone]} on SciQ (LoRA {area[SCIQ, 'lora']}), where no seed" in said
    assert not any(each is not None for each in board.rows[SCIQ, alone]["equal"]["rise_at_90"]["each"].values())
    assert f"(area {area[SCIQ, 'replay']} for {area[SCIQ, 'lora']})" in said
    held = [f"{area[task, 'kfac']} and {area[task, 'ewclora_true']}" for task in (SCIQ, OPENBOOK)]
    assert f"(areas {held[0]}, {held[1]})" in said
    noise = board.whole["results"][0]["noise"]["learned"]["difference"]
    assert f"learned is {noise:.3f}," in said
    mlp = [f"{area[task, 'mlp_only']} for {area[task, 'lora']}" for task in (SCIQ, OPENBOOK)]
    assert f"(areas {mlp[0]} on SciQ, {mlp[1]} on OpenBookQA)" in said
    alone = board.rows[OPENBOOK, "mlp_only"]["equal"]["rise_at_90"]["mean"]
    assert f"equal learning ({alone:.3f} for {at['lora']} at 90 %" in said
    paper = [f"{area[task, 'alora']} for {area[task, 'lora']}" for task in (SCIQ, OPENBOOK)]
    chance = f"{tested[OPENBOOK, 'hypervolume', 'alora']:.2f}"
    assert f"areas {paper[0]} on SciQ, {paper[1]} on OpenBookQA (P = {chance})" in said


def test_what_the_small_board_says_of_settings(board: SmallBoard) -> None:
    said, figures = board.said, board.figures
    fisher = figures[SCIQ, "ewclora_true", "learning_rate=0.004, lam=0.01"]
    curvature = figures[SCIQ, "kfac", "learning_rate=0.002, lam=0.0003"]
    assert f"learned {fisher['learned']:.3f} where general loss rose by {fisher['rise']:.3f}" in said
    assert f"and `kfac` {curvature['learned']:.3f} where" in said and abs(fisher["rise"] - curvature["rise"]) < 0.001
    natural = [figures[task, "kfac_natural", "learning_rate=0.002, lam=0.0003"] for task in (SCIQ, OPENBOOK)]
    here, there = (f"{one['learned']:.3f} where general loss rose by {one['rise']:.3f}" for one in (natural[0], fisher))
    assert f"on SciQ {here} (`kfac` {curvature['learned']:.3f} and {curvature['rise']:.3f})" in said and there in said
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
