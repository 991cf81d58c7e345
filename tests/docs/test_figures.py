"""Tables of the documentation have the figures of the committed results, and no others."""

from __future__ import annotations

import json

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
