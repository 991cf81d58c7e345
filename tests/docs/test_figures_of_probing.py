"""The figures of docs/fit.md on short trainings are those of the committed study."""

from __future__ import annotations

import importlib
import json
import statistics

import pytest

from tests.docs.pages import ROOT


def test_short_trainings_beside_a_fixed_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    fit_probing = importlib.import_module("fit_probing")
    found = json.loads((ROOT / "results" / "studies" / "fit-probing.json").read_text())
    page = (ROOT / "docs" / "fit.md").read_text(encoding="utf-8")
    said = " ".join(page.split())
    assert fit_probing.format_table(found["summary"]) in page
    cells = {(cell["task"], cell["seed"], cell["way"]): cell for cell in found["cells"]}
    rows = {(row["task"], row["way"]): row for row in found["summary"]}

    def more(task: str, way: str) -> str:
        return f"{rows[task, way]['more_than_fixed']['mean']:+.3f}"

    assert (
        f"gained {more('openbookqa', 'probed_25')} nats on OpenBookQA and {more('sciq', 'probed_25')} on SciQ" in said
    )
    for task in ("openbookqa", "sciq"):  # within the spread; less of the rate learned less; longer trainings more
        short = rows[task, "probed_25"]["more_than_fixed"]
        assert abs(short["mean"]) < short["standard_deviation"]
        assert all(rows[task, way]["more_than_fixed"]["mean"] < 0 for way in ("rate_0.25", "rate_0.5"))
    longer = [more(task, way) for way in ("longer_25", "longer_100") for task in ("openbookqa", "sciq")]
    assert "gained {} and {}, twice as many {} and {}".format(*longer) in said
    chosen = [cells["openbookqa", seed, "probed_25"] for seed in range(3)]
    assert {cell["chosen"]["rate"] for cell in chosen} == {0.004}
    fell = {key: cell["choices_base"] - cell["choices"] for key, cell in cells.items()}
    better = [fell["openbookqa", seed, "probed_25"] > fell["openbookqa", seed, "fixed"] for seed in range(3)]
    assert sum(better) == 2

    def seconds(task: str, *ways: str) -> float:
        return statistics.fmean(
            c["seconds"] for c in found["cells"] if c["task"] == task and c["way"] in ways and c["seconds"]
        )

    for words, way in (
        ("a quarter took {:.1f} and {:.1f} times", "probed_25"),
        ("twice the steps took {:.1f} and {:.1f} times", "longer_100"),
    ):
        times = [seconds(t, way) / seconds(t, "rate_0.25", "rate_0.5", "rate_2") for t in ("openbookqa", "sciq")]
        assert words.format(*times) in said
    assert f"All {len(cells)} fits of this table kept their promise on test text" in said
    assert all(cell["kept"] and cell["test_rise_given"] <= cell["budget"] for cell in cells.values())
