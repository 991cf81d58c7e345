"""Results as dataclasses: every committed file is read and written again as it is, and every name of a metric stands once."""

from __future__ import annotations

import ast
import json
import math
from collections import Counter
from pathlib import Path

import pytest

from alora_trainer.basics.files import write_json
from alora_trainer.basics.scores import GeneralScore, KLToBase, Score, TaskScore, metric_definitions
from alora_trainer.experiment.report.method_result import MethodResult, TrainingCost
from alora_trainer.experiment.report.results import RunResults, read_results

ROOT = Path(__file__).resolve().parents[2]
# Tables made from many runs by a script of their own, which reads them again itself.
COMPARISONS = {"board-small.json", "board-starts.json", "comparison.json", "curvature-comparison.json"}
COMMITTED = [path for path in sorted((ROOT / "results").glob("*.json")) if path.name not in COMPARISONS]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name)
def test_committed_results_are_written_as_they_were_read(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    runs = read_results(path)
    # As text, so that the order of the keys and the kinds of the numbers count, too.
    assert json.dumps([run.to_json() for run in runs]) == json.dumps(content.get("runs", [content]))
    entries = [result for run in runs for result in run.methods.values()]
    assert entries and not any(result.further or result.general.further for result in entries)
    assert all(isinstance(result.general.token_perplexity, float) for result in entries)


def test_what_is_not_finite_is_null_in_the_file(tmp_path: Path) -> None:
    ruined = Score(GeneralScore(token_perplexity=math.inf, kl_to_base=KLToBase(math.nan, 3)), {"t": TaskScore(acc=0.0)})
    result = MethodResult.of(ruined, {"train": {"seconds": 1.5, "steps": 3, "of_a_plugin": [1]}})
    write_json(tmp_path / "results.json", RunResults({"seed": 4}, {"lora": result}).to_json())
    (run,) = read_results(tmp_path / "results.json")
    again = run.methods["lora"]
    assert again.general.token_perplexity is not None and math.isnan(again.general.token_perplexity)
    assert again.general.kl_to_base is not None and math.isnan(again.general.kl_to_base.nats_per_token)
    assert again.train == TrainingCost(seconds=1.5, steps=3, further={"of_a_plugin": [1]})
    assert again.record is None and run.seed == 4 and again.to_json() == result.to_json()


def test_every_name_of_a_metric_stands_once() -> None:
    """As a string; the dataclasses' own fields are no strings. One more names the folder of the `evaluate` module."""
    names = Counter[str]()
    for path in sorted((ROOT / "alora_trainer").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                names[node.value] += 1
    once = {name for name in metric_definitions() if "perplexity" in name or "byte" in name or "kl_" in name}
    assert len(once) >= 6
    assert {name: names[name] for name in once if names[name] > 1} == {}
