"""Tables of the documentation have the figures of the committed results, and no others."""

from __future__ import annotations

import importlib
import json
import statistics

import pytest

from alora_trainer.experiment.board.board_json import read_board_json
from alora_trainer.experiment.board.text_table import board_tables
from tests.docs.pages import ROOT


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


def test_the_small_board() -> None:
    board = read_board_json(ROOT / "results" / "board-small.json")
    page = (ROOT / "docs" / "board.md").read_text(encoding="utf-8")
    assert board_tables(board) in page
    said = " ".join(page.split())
    figures = {
        (result["task"], final["row"], final["trial"]): {
            name: statistics.fmean(seed[name] for seed in final["seeds"].values()) for name in ("learned", "rise")
        }
        for result in board["results"]
        for final in result["finals"]
    }
    fast, slow = (figures["sciq-passages", "lora", f"learning_rate={rate}"] for rate in ("0.002", "0.001"))
    held, other = (figures[task, "kfac", "learning_rate=0.002, lam=0.001"] for task in ("sciq-passages", "openbookqa"))
    assert f"LoRA forgets {fast['rise']:.3f} at 0.002 and {slow['rise']:.3f} at 0.001" in said
    assert f"and learns {fast['learned']:.3f} and {slow['learned']:.3f}" in said
    assert f"learns {held['learned']:.3f} there and forgets {held['rise']:.3f}" in said
    shares = [100 * one["rise"] / board["results"][0]["base"]["cross_entropy"] for one in (held, other)]
    assert f"forgot {shares[0]:.1f} % of general loss on SciQ and {shares[1]:.1f} % on OpenBookQA" in said
    tested = {
        (result["task"], one["measure"]): one["p_holm"]
        for result in board["results"]
        for one in result["comparisons"]
        if one["row"] == "kfac" and one["against"] == "lora"
    }
    assert f"(P = {tested['openbookqa', 'rise_at_90']:.3f} after" in said
    assert f"P = {tested['sciq-passages', 'hypervolume']:.3f})" in said
