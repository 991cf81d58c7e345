"""The boards in recipes/boards: whole, checked and planned without network; what PEFT's needs beside."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alora_trainer.experiment.board.board_file import read_board
from alora_trainer.experiment.board.dry_run import estimate_text, estimated
from alora_trainer.experiment.board.published import read_published
from alora_trainer.experiment.recipe.plan import estimate
from alora_trainer.experiment.recipe.plan.devices import DEVICES
from alora_trainer.experiment.recipe.plan.models import model_config

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "boards"
PEFT = FOLDER / "peft"


def loaded(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def peft_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What prepare.py would have written, in small."""
    items = [{"query": f"{n} and {n}?", "response": f"It is {2 * n}.\n#### {2 * n}"} for n in range(4)]
    texts = [{"text": "The river was cold."}]
    for name in ("metamathqa-train", "gsm8k-test", "gsm8k-validation"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    for name in ("train", "test", "validation"):
        (tmp_path / f"finewiki-{name}.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    monkeypatch.setenv("ALORA_PEFT_DATA", str(tmp_path))
    return tmp_path


def test_the_small_board_is_checked_without_training() -> None:
    board = read_board(FOLDER / "small.yaml")
    assert [row.name for row in board.rows][:2] == ["lora", "kfac"] and len(board.rows) == 12
    found = estimated(board, board.rows, None)
    assert [(one.task, one.trials, one.finals) for one in found] == [("sciq-passages", 48, 72), ("openbookqa", 48, 72)]
    assert "at most 240 trainings; nothing was trained" in estimate_text(board, found, None, 1)
    # What was tried elsewhere is not tried again: of the reference its finals alone.
    left = estimated(board, board.only(["lora", "ekfac"]), None, tried=["lora", "kfac"])
    assert [(one.trials, one.finals) for one in left] == [(4, 12), (4, 12)]
    tasks = {task.name: task for task in board.tasks}
    for task in tasks.values():
        assert "validation" in task.validation["domain.test"]
    kinds = [json.loads(settings["general.test"]) for settings in (board.settings, board.validation)]
    assert kinds[0].keys() == kinds[1].keys() > json.loads(board.settings["general.train"]).keys()
    assert not set(kinds[0].values()) & set(kinds[1].values())


def test_the_board_of_starts_is_the_small_boards_setting() -> None:
    """So that the small board's finished rows may stand in it."""
    small, starts = (read_board(FOLDER / name) for name in ("small.yaml", "starts.yaml"))
    theirs, ours = small.written, starts.written
    for key in {*theirs, *ours} - {"name", "title", "rows", "left_out", "against"}:
        assert theirs[key] == ours[key], key
    both = theirs["rows"].keys() & ours["rows"].keys()
    assert all(theirs["rows"][name] == ours["rows"][name] for name in both)
    assert both == {"lora", "kfac", "ewclora_true", "replay", "kfac_natural", "lora_contrastive_frozen"}
    found = estimated(starts, starts.rows, None, tried=list(both))
    assert [(one.trials, one.finals) for one in found] == [(68, 138), (68, 138)]


def test_pefts_board_is_planned_without_network(peft_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shallow(recipe: Any, config_file: Any = None) -> Any:
        config = model_config(recipe, config_file)
        config.num_hidden_layers = 2  # which a plan is as true of
        return config

    monkeypatch.setattr(estimate, "model_config", shallow)
    board = read_board(FOLDER / "peft.yaml")
    rows = board.only(["mlp_only", "kfac"])
    (found,) = estimated(board, rows, DEVICES["H100"])
    assert (
        (found.trials, found.finals, found.unknown) == (12, 18, ()) and found.seconds is not None and found.seconds > 0
    )
    text = estimate_text(board, [found], DEVICES["H100"], 2)
    assert "on H100" in text and "over 2 workers" in text


def test_published_figures_are_those_of_the_issue() -> None:
    points = {
        point["label"]: (point["accuracy"], point["rise"])
        for point in read_published(PEFT / "published.json")["points"]
    }
    assert len(points) == 63
    assert points["lora rank32"] == (0.4784, 0.05) and points["lora rank10-target-mlp"] == (0.4943, 0.0318)
    assert points["osf rank128"] == (0.4268, 0.0165) and points["full-finetuning lr_0.00001"] == (0.4716, 0.03)


@pytest.mark.parametrize(
    ("generated", "response", "right"),
    [
        ("So 2 + 2 = 4. The answer is: 4", "#### 4", True),
        ("The answer is: 3\nThe answer is: 4.0.", "#### 4", True),
        ("The final answer is $20/35$", "#### 0.5714285714285714", True),
        ("#### 50%", "The answer is: 50", True),
        ("It is 4.", "#### 4", False),
        ("The answer is: four\n\nQuestion: 4", "#### 4", False),
        ("The answer is: 1,000", "#### 1000", False),  # as there
        ("The answer is: 1/0", "The answer is: 1/0", True),
    ],
)
def test_generated_answers_are_read_as_pefts_script_does(generated: str, response: str, right: bool) -> None:
    assert loaded(PEFT / "tasks" / "answers.py").is_right(generated, response) is right


def test_lm_eval_takes_the_tasks(peft_data: Path) -> None:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False, include_path=[str(PEFT / "tasks")])
    for name in ("gsm8k_peft", "gsm8k_peft_validation"):
        task = manager.load([name])["tasks"][name]
        doc = next(iter(task.test_docs()))
        assert task.doc_to_text(doc) == "Question: 0 and 0? Think step by step.\nAnswer:"
        assert task.process_results(doc, ["The answer is: 0"]) == {"exact_match": 1.0}
        assert task.config.generation_kwargs["max_gen_toks"] == 300


def test_what_is_taken_of_the_hub_is_what_peft_takes() -> None:
    prepare = loaded(PEFT / "prepare.py")
    np.random.seed(0)
    places = np.arange(7473)
    np.random.shuffle(places)
    assert prepare.validation_places(7473)[:50] == places[:50].tolist()
    assert prepare.is_short({"query": "q" * 1000, "response": "r" * 299})
    assert not prepare.is_short({"query": "q" * 1000, "response": "r" * 300})
    assert prepare.renamed({"question": "a", "answer": "b", "more": 1}) == {"query": "a", "response": "b"}
