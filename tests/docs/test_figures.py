"""Tables of the documentation have the figures of the committed results, and no others."""

from __future__ import annotations

import importlib
import json

import pytest

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
