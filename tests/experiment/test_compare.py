"""`alora compare`: counts and texts against what was put in."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from alora_trainer.basics.files import write_json
from alora_trainer.cli.command_line import main
from alora_trainer.data.sources import write_lines
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.report.item_comparison import compare_folders

BEFORE = [1, 1, 0, 0, 0, 0, 1, 0, 0, 0]
AFTER = [1, 0, 1, 1, 1, 1, 1, 0, 0, 1]
LOSSES = {"books": ([2.0, 3.0], [2.5, 3.1]), "code": ([1.0, 1.0], [0.9, 1.0])}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    for name, answers, side in (("lora", BEFORE, 0), ("alora", AFTER, 1)):
        rows: list[dict[str, Any]] = [
            {
                "subset": subset,
                "doc_id": place,
                "doc_hash": f"{subset}{place}",
                "log_likelihood": -10 * loss,
                "tokens": 10,
            }
            | {"words": 5, "bytes": 40}
            for subset, losses in LOSSES.items()
            for place, loss in enumerate(losses[side])
        ]
        rows += [{"task": "sciq", "doc_id": n, "doc_hash": f"q{n}", "acc": float(a)} for n, a in enumerate(answers)]
        write_lines(folder / name / "samples.jsonl", rows)
    write_lines(folder / "data" / "test.jsonl", [{"question": f"Question {n}?"} for n in range(10)])
    for subset in LOSSES:
        write_lines(
            folder / "data" / f"{subset}.jsonl", [{"text": f"{subset} {n}\n\n" + "word " * 99} for n in range(2)]
        )
    general = {subset: f"data/{subset}.jsonl" for subset in LOSSES}
    write_json(folder / "data" / "data.json", {"general": general, "test": "data/test.jsonl"})
    return folder


def test_items_subsets_and_texts(run: Path) -> None:
    found = compare_folders(run / "lora", run, examples=2)
    assert (found["before"], found["after"]) == ("run/lora", "run/alora")
    task = found["tasks"]["sciq"]
    assert {key: task[key] for key in ("items", "both", "neither", "won", "lost")} == {
        "items": 10, "both": 2, "neither": 2, "won": 5, "lost": 1
    }  # fmt: skip
    assert task["p"] == pytest.approx(2 * (1 + 6) / 2**6)  # the binomial tail, written out
    assert task["won_examples"] == ["Question 2?", "Question 3?"] and task["lost_examples"] == ["Question 1?"]
    assert list(found["subsets"]) == ["books", "code"]  # the worst first
    assert found["subsets"]["books"]["before"] == pytest.approx(math.exp(2.5))
    assert found["subsets"]["books"]["change"] == pytest.approx(100 * (math.exp(0.3) - 1))
    assert [(text["subset"], text["doc_id"]) for text in found["texts"]] == [("books", 0), ("books", 1)]
    assert found["texts"][0]["rise"] == pytest.approx(0.5)
    assert found["texts"][0]["text"].startswith("books 0 word") and len(found["texts"][0]["text"]) == 160


def test_the_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found.json"
    assert main(["compare", str(run / "lora"), str(run / "alora"), "--output", str(out), "--examples", "1"]) == 0
    printed = capsys.readouterr().out
    assert "of 10 items, B wins 5 and loses 1 (both right 2, neither 2" in printed
    assert "books: 12.18 -> 16.44 (+35.0 %) lost" in printed and "+0.500 books 0: books 0 word" in printed
    assert json.loads(out.read_text())["tasks"]["sciq"]["won"] == 5


def test_what_cannot_be_compared(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ALoRAError, match="has no samples.jsonl"):
        compare_folders(run / "lora", tmp_path)
    write_lines(
        tmp_path / "other" / "alora" / "samples.jsonl", [{"task": "t", "doc_id": 0, "doc_hash": "x", "acc": 1.0}]
    )
    with pytest.raises(ALoRAError, match="no document in common"):
        compare_folders(run, tmp_path / "other")
    rows = (run / "lora" / "samples.jsonl").read_text().splitlines(keepends=True)
    (run / "lora" / "samples.jsonl").write_text("".join(rows[:-2]))
    with pytest.raises(ALoRAError, match="2 documents were scored in only one"):
        compare_folders(run / "lora", run / "alora")


def test_free_answers_are_won_by_being_likelier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """None is met whole, so that by `acc` all would be alike."""
    for name, likelihoods in (("lora", [-20.0, -30.0, -10.0]), ("alora", [-10.0, -15.0, -11.0])):
        rows = [
            {
                "task": "chat",
                "doc_id": n,
                "doc_hash": f"c{n}",
                "acc": 0.0,
                "log_likelihoods": [one],
                "tokens": 10 * (n + 1),
            }
            for n, one in enumerate(likelihoods)
        ]
        write_lines(tmp_path / "run" / name / "samples.jsonl", rows)
    task = compare_folders(tmp_path / "run" / "lora", tmp_path / "run" / "alora")["tasks"]["chat"]
    assert (task["won"], task["lost"], task["both"], task["neither"]) == (2, 1, 0, 0)
    assert task["answer_loss"] == [pytest.approx(60 / 60), pytest.approx(36 / 60)]
    assert main(["compare", str(tmp_path / "run" / "lora"), str(tmp_path / "run" / "alora")]) == 0
    assert "loss a token 1.000 -> 0.600 nats" in capsys.readouterr().out
