"""A board in miniature: the tiny recipe, two rows of two trials each, and work in this very process."""

from __future__ import annotations

import json
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import yaml

from alora_trainer.experiment.run.scheduling import workers
from tests.tiny_recipe import write_all

BOARD: dict[str, Any] = {
    "name": "tiny",
    "title": "A tiny board",
    "models": {"little": {"path": "model"}},
    "tasks": {
        "sums": {
            "recipe": "recipe.yaml",
            "settings": {"general.test": {"words": "words_test.jsonl", "others": "words_train.jsonl"}},
            "validation": {"domain.test": "sums_validation.jsonl", "general.test": {"words": "words_validation.jsonl"}},
        }
    },
    "settings": {"general.train": {"words": "words_train.jsonl"}, "tune.max_steps": 4, "curvature.tokens": 64},
    "finals": {"seeds": "0,1", "points": 1, "settings": {"evaluation.kl_tokens": 40}},
    "trials": 2,
    "reference": "lora",
    "rows": {
        "lora": {"grid": {"tune.learning_rate": [0.01, 0.05]}},
        "curved": {
            "method": "kfac",
            "text": "held by curvature",
            "settings": {"tune.learning_rate": 0.05},
            "grid": {"alora.lam": [0.001, 10.0]},
        },
    },
}


def write_board_files(folder: Path, **changes: Any) -> Path:
    """Model, data, recipe and board in `folder`; the board's path."""
    write_all(folder)
    lines = (folder / "sums_train.jsonl").read_text().splitlines(keepends=True)
    (folder / "sums_train.jsonl").write_text("".join(lines[:10]))
    (folder / "sums_validation.jsonl").write_text("".join(lines[10:]))
    words = (folder / "words_test.jsonl").read_text().splitlines(keepends=True)
    (folder / "words_validation.jsonl").write_text("".join(words[:4]))
    return write_board_file(folder / "board.yaml", **changes)


def write_board_file(path: Path, **changes: Any) -> Path:
    """The board alone, with top-level keys changed (None takes one out)."""
    content = {key: value for key, value in (json.loads(json.dumps(BOARD)) | changes).items() if value is not None}
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


class InThisProcess:
    """In the place of worker processes: what is submitted is done at once, and an interruption comes through."""

    _processes: Any = None

    def __init__(self, *arguments: Any) -> None:
        pass

    def submit(self, work: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self, **settings: Any) -> None:
        pass


def stay_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let schedulers work here, which spares the seconds in which a process imports its libraries."""
    monkeypatch.setattr(workers, "ProcessPoolExecutor", InThisProcess)
