"""Results as the Hub's leaderboards read them: where the data set says what its task is called, in the Hub's own format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import parse_eval_result_entries

from alora_trainer.artefact.cards.evaluation import CardScores
from alora_trainer.artefact.hub.benchmarks import write_benchmark_results
from alora_trainer.basics.scores import Score, TaskScore

EVAL = b"""name: Sums
evaluation_framework: inspect-ai
tasks:
- {id: sums_easy, config: easy, split: test}
- {id: sums_all, config: default, split: test}
- {id: sums_again, config: twice, split: test}
- {id: sums_once_more, config: twice, split: test}
"""


def scores(acc: float | None = 0.464, **source: Any) -> CardScores:
    return CardScores(Score(tasks={"sums": TaskScore(acc=acc, source=source or None)}))


@pytest.mark.parametrize(("part", "task"), [({}, "sums_all"), ({"name": "easy"}, "sums_easy")])
def test_a_benchmark(hub: Any, tmp_path: Path, part: dict[str, str], task: str) -> None:
    hub.store.add("dataset", "ann/sums", {"eval.yaml": EVAL})
    path = tmp_path / ".eval_results" / "a.yaml"
    assert write_benchmark_results(scores(hub="ann/sums", split="test", **part), path, None)
    (entry,) = parse_eval_result_entries(yaml.safe_load(path.read_text()))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("ann/sums", task, pytest.approx(46.4))
    assert entry.notes is not None and "per cent" in entry.notes


@pytest.mark.parametrize(
    "found",
    [
        scores(),  # of a local file
        scores(acc=float("nan"), hub="ann/sums", split="test"),
        scores(hub="ann/sums", split="validation"),
        scores(hub="ann/sums", name="twice", split="test"),  # two tasks: which is not said
        scores(hub="ann/plain", split="test"),  # no benchmark
        scores(hub="ann/damaged", split="test"),
        scores(hub="ann/nowhere", split="test"),
    ],
)
def test_what_has_no_place(hub: Any, tmp_path: Path, found: CardScores) -> None:
    hub.store.add("dataset", "ann/sums", {"eval.yaml": EVAL})
    hub.store.add("dataset", "ann/plain", {"README.md": b""})
    hub.store.add("dataset", "ann/damaged", {"eval.yaml": b"tasks: {id: ["})
    assert not write_benchmark_results(found, tmp_path / "a.yaml", None)
    assert not (tmp_path / "a.yaml").exists()
