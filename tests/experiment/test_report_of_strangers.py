"""A report of results that a stranger wrote: their names and words are text in it, on paper, in Markdown and on a terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alora_trainer.cli import main
from alora_trainer.experiment.report.method_result import ContinualScore, MethodResult
from alora_trainer.experiment.report.results import read_results
from alora_trainer.experiment.report.text_table import format_table
from alora_trainer.experiment.run.transfer import format_matrices
from tests.made_up_results import made_up_run

# A cell's end, a heading, tags, links, an escape sequence, and mathematics that matplotlib cannot read.
STRANGE = "a|b\n# <img src=x onerror=alert(1)> [x](javascript:y) `c` \x1b[31m $\\foo{$"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = made_up_run(0)
    run["recipe"] |= {"name": STRANGE, "model": {"path": STRANGE}}
    run["environment"][STRANGE] = run["definitions"][STRANGE] = STRANGE
    run["methods"][f"alora@{STRANGE}"] = run["methods"].pop("alora@lam=1.0")
    run["methods"][f"alora@{STRANGE}"]["settings"] = {"protecting.lam": 1.0, "protecting.start": STRANGE}
    for method in run["methods"].values():
        method["tasks"] = {STRANGE: method["tasks"].pop("sciq")}
    path = tmp_path_factory.mktemp("strange") / "results.json"
    path.write_text(json.dumps(run))
    return path


def assert_text(page: str) -> None:
    assert "alert(1)" in page  # it is there, as text
    for raw in ("<img", "[x](", "`c`", "\x1b", "\n# <"):
        assert raw not in page, raw


def test_the_report(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(results), "--output_dir", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.md").read_text()
    assert_text(page)
    for table in page.split("\n\n"):
        if table.startswith("|"):  # every row has as many cells as the head
            assert len({line.replace("\\|", "").count("|") for line in table.splitlines()}) == 1
    assert page.count("\n# ") == 0 and page.startswith("# Report\n")
    html = (tmp_path / "out" / "report.html").read_text()
    assert "<img src=x" not in html and "&lt;img src=x" in html


def test_the_table_of_a_run(results: Path) -> None:
    (run,) = read_results(results)
    table = format_table(run.methods)
    assert_text(table)
    assert len({line.replace("\\|", "").count("|") for line in table.splitlines()}) == 1


def test_the_matrices_of_several_domains() -> None:
    score = ContinualScore([STRANGE, "b"], [[0.1, 0.2]] * 3, [1.0, 2.0, 3.0], 0.5)
    table = format_matrices({STRANGE: MethodResult(continual=score)})
    assert_text(table)
    assert {line.replace("\\|", "").count("|") for line in table.splitlines() if line.startswith("|")} == {5}
