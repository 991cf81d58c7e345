"""The benchmarks are run by hand: that they can still be imported, with all that they use of the package, is tested here."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_it_can_be_imported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    module = importlib.import_module(name)
    assert module.__doc__ and Path(str(module.__file__)).parent == FOLDER


def test_a_figure_at_the_rise_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Straight lines from the base model on; past the last point nothing more is learned; a rise below zero is no trouble."""
    monkeypatch.syspath_prepend(str(FOLDER))
    at_rise = importlib.import_module("fit_beside").at_rise
    points = [{"rise": 0.04, "nats": 0.3}, {"rise": 0.01, "nats": 0.2}, {"rise": -0.001, "nats": 0.05}]
    found = [at_rise(points, rise, "nats") for rise in (0.0, 0.01, 0.025, 0.04, 0.1)]
    assert found == pytest.approx([0.05 + 0.15 / 11, 0.2, 0.25, 0.3, 0.3])
    assert at_rise(points[:2], 0.005, "nats") == pytest.approx(0.1)


def test_a_report_is_gone_on_from_if_it_asked_for_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    taken_over = importlib.import_module("studies").taken_over
    path, asked, here = tmp_path / "report.json", {"strengths": (0.1, 0.2)}, {"torch": "2.13.0", "platform": "one"}
    assert taken_over(path, asked, here) == {}
    report = {"asked": {"strengths": [0.1, 0.2]}, "environment": here | {"platform": "another"}, "trainings": {"a": 1}}
    path.write_text(json.dumps(report))
    assert taken_over(path, asked, here) == report
    assert taken_over(path, {"strengths": (0.1,)}, here) == {} == taken_over(path, asked, here | {"torch": "2.14.0"})
