"""Data sets from the Hub: `load_dataset`, our own sources, and lm-eval's built-in tasks, none of them changed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from alora_trainer.data.sources import load_source, write_lines
from alora_trainer.data.tasks import get_task
from tests.artefact.hub_server.task_data import MEDMCQA, PIQA, SCIQ, add_task_data
from tests.tiny_recipe import write_all

ITEMS = {"sciq": SCIQ, "piqa": PIQA, "medmcqa": MEDMCQA}


def test_load_dataset_and_our_sources(hub: Any) -> None:
    from datasets import load_dataset

    add_task_data(hub.store)
    assert load_dataset("allenai/sciq", split="test").to_list() == SCIQ
    assert load_source("hub:baber/piqa") == PIQA
    source = {"hub": "openlifescienceai/medmcqa", "split": "validation", "revision": "main"}
    assert [row["question"] for row in load_source(source)] == [item["question"] for item in MEDMCQA]


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from alora_trainer.evaluation.scorer import Scorer

    folder = write_all(tmp_path_factory.mktemp("scored")).parent / "model"
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return Scorer(model, copy.deepcopy(AutoTokenizer.from_pretrained(folder)), batch_size=4, max_length=256)


def test_built_in_tasks_run_unchanged(hub: Any, scorer: Any, tmp_path: Path) -> None:
    """lm-eval's own YAML files fetch the data by its real ids; our evaluation of the same items in a file agrees."""
    import lm_eval.tasks
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    from tests.evaluation_fixtures import evaluate_as_json

    add_task_data(hub.store)
    home = Path(lm_eval.tasks.__file__).parent
    manager = TaskManager(include_defaults=False, include_path=[str(home / name) for name in ITEMS])
    result = evaluator.evaluate(scorer, manager.load(list(ITEMS)), bootstrap_iters=0)
    assert result is not None
    for name, items in ITEMS.items():
        write_lines(tmp_path / f"{name}.jsonl", items)
    ours = evaluate_as_json(
        scorer.model,
        scorer.tokenizer,
        general={},
        tasks={name: tmp_path / f"{name}.jsonl" for name in ITEMS},
        task_specs=[get_task(name) for name in ITEMS],
    )
    for name, items in ITEMS.items():
        assert [sample["doc"]["question" if name != "piqa" else "goal"] for sample in result["samples"][name]] == [
            item["question" if name != "piqa" else "goal"] for item in items
        ]
        for metric in ("acc", "acc_norm"):
            assert result["results"][name][f"{metric},none"] == pytest.approx(ours["tasks"][name][metric])
