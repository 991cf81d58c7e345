"""What the documentation says of rivals' starts has the figures of the committed results, and no others."""

from __future__ import annotations

import importlib
import json

import pytest

from tests.docs.pages import ROOT
from tests.docs.small_board import OPENBOOK, SCIQ

FAR = ("lora_ga", "eva", "pissa", "olora", "orthogonal", "sc_lora")
Figures = dict[str, float]


def told(one: Figures) -> str:
    return f"{one['rise_recorded']:.3f} and {one['rise_other']:.3f}"


def test_rivals_starts_beside_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    rivals = importlib.import_module("first_directions_rivals")
    found = json.loads((ROOT / "results" / "studies" / "first-directions-rivals.json").read_text())
    page = (ROOT / "docs" / "methods" / "first_directions.md").read_text(encoding="utf-8")
    said = " ".join(page.split())
    for task in (SCIQ, OPENBOOK):
        assert rivals.format_table(found["summary"][task]) in page
    seeds = {task: {rate: list(each) for rate, each in rates.items()} for task, rates in found["trainings"].items()}
    both = {"0.001": ["0"], "0.00025": ["0"]}
    assert seeds == {SCIQ: {"0.002": ["0", "1"]} | both, OPENBOOK: {"0.002": ["0"]} | both}

    def points(task: str) -> dict[tuple[str, str], Figures]:
        """Seed 0's figures, by method and rate."""
        return {
            (method, rate): {**figures, "learned": each["0"]["base"]["choices"] - figures["choices"]}
            for rate, each in found["trainings"][task].items()
            for method, figures in each["0"].items()
            if method != "base"
        }

    rises = ("rise_recorded", "rise_other")
    sentences = []
    for task, name in ((SCIQ, "SciQ"), (OPENBOOK, "OpenBookQA")):
        own = points(task)
        natural = own["lora_natural", "0.001"]
        as_much = {
            key: one for key, one in own.items() if key[0] in rivals.RIVALS and one["learned"] >= natural["learned"]
        }
        assert all(one[half] > natural[half] for one in as_much.values() for half in rises)
        (method, rate), least = min(as_much.items(), key=lambda item: item[1]["rise_recorded"])
        sentences.append(
            f"{name}: {told(natural)} at {natural['learned']:.3f} learned, of the rivals' points with as much ({len(as_much)}) "
            f"`{method}` at {rate} least, {told(least)} at {least['learned']:.3f}"
        )
        assert all(own["lora_null_frozen", rate]["learned"] < 0.04 for rate in ("0.002", "0.001"))
    assert "; ".join(sentences) in said
    for task, times in ((SCIQ, 3), (OPENBOOK, 1.3)):
        own = points(task)
        assert all(
            own[method, rate][half] > times * own["lora", rate][half]
            for method in FAR
            for rate in ("0.002", "0.001")
            for half in rises
        )
    pissa, lora = points(SCIQ)["pissa", "0.001"], points(SCIQ)["lora", "0.001"]
    assert f"PiSSA {told(pissa)} at 0.001, LoRA {told(lora)}" in said
    for name in FAR:
        one = points(SCIQ)[name, "0.00025"]
        assert f"`{name}` {told(one)} at {one['learned']:.3f}" in said
