"""The task package under plain lm-eval: it loads, asks what lm-eval's own tasks ask, and gives the same accuracy as ours."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from alora_trainer.cli.command_line import main
from alora_trainer.data.sources import read_lines, write_lines
from alora_trainer.data.tasks import get_task
from alora_trainer.errors import ALoRAError
from alora_trainer.evaluation.task_documents import PACKAGE, load_documents
from tests.evaluation_fixtures import TEXTS, evaluate_as_json

SCIQ = {
    "question": "Which gas is noble?",
    "distractor1": "salt water",
    "distractor2": "C",
    "distractor3": "oxygen",
    "correct_answer": "neon",
    "support": " In the morning, water.",
}
PIQA = {"goal": "To walk to the river", "sol1": "walk to the river.", "sol2": "stay in the village.", "label": 0}
MEDMCQA = {"question": "Noble?", "opa": "neon", "opb": "salt", "opc": "water", "opd": "a river", "cop": 0}
RECORDS: dict[str, list[dict[str, Any]]] = {
    "sciq": [
        SCIQ | {"question": f"{SCIQ['question']} ({n})", "correct_answer": "neon " * (n % 3 + 1)} for n in range(7)
    ],
    "piqa": [PIQA | {"label": n % 2, "goal": PIQA["goal"] + "!" * n} for n in range(5)],
    "medmcqa": [MEDMCQA | {"cop": n % 4, "question": "Noble" * n + "?"} for n in range(6)],
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, records in RECORDS.items():
        write_lines(tmp_path / "data" / name / "test.jsonl", records)
    texts = [{"text": text, "meta": {}} for texts in TEXTS.values() for text in texts]
    write_lines(tmp_path / "data" / "pile_10k.jsonl", texts)
    return tmp_path / "data"


def plain_lm_eval(model: Any, tokenizer: Any, tasks: list[str], metadata: dict[str, Any]) -> dict[str, Any]:
    """What ``lm_eval --include_path $(alora tasks) --tasks ... --metadata ...`` computes."""
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False, include_path=[str(PACKAGE)], metadata=metadata)
    lm = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=2)
    found = evaluator.evaluate(lm, manager.load(tasks), bootstrap_iters=0)
    assert found is not None
    return dict(found["results"])


def test_accuracy_is_plain_lm_evals_to_the_last_digit(
    model: Any,
    tokenizer: Any,
    data: Path,
    tmp_path: Path,
) -> None:
    theirs = plain_lm_eval(model, tokenizer, ["alora_domain"], {"data": str(data)})
    for name, records in RECORDS.items():
        task = get_task(name)
        write_lines(tmp_path / f"{name}.jsonl", [task.convert(record) for record in records])
        found = evaluate_as_json(
            model, tokenizer, general={}, tasks={name: tmp_path / f"{name}.jsonl"}, task_specs=[task]
        )["tasks"][name]
        for metric in ("acc", "acc_norm"):
            assert found[metric] == theirs[f"alora_{name}"][f"{metric},none"]
    accuracies = [theirs[f"alora_{name}"]["acc,none"] for name in RECORDS]
    assert theirs["alora_domain"]["acc,none"] == pytest.approx(sum(accuracies) / 3)


def test_perplexities_are_ours(model: Any, tokenizer: Any, data: Path) -> None:
    theirs = plain_lm_eval(
        model, tokenizer, ["alora_general", "alora_text"], {"data": str(data), "text": str(data / "pile_10k.jsonl")}
    )
    ours = evaluate_as_json(model, tokenizer, general={"pile": data / "pile_10k.jsonl"}, tasks={}, task_specs=[])[
        "general"
    ]
    for task in ("alora_pile_10k", "alora_text"):
        for metric in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
            assert theirs[task][f"{metric},none"] == pytest.approx(ours[metric], rel=1e-6)
    assert theirs["alora_general"]["bits_per_byte,none"] == pytest.approx(ours["bits_per_byte"], rel=1e-6)


def test_the_target_of_rolling_tasks_is_the_text_itself(data: Path) -> None:
    """lm-eval's pile_10k has the column's name as its target, which is right; as a template a text in brackets is a list."""
    from lm_eval.tasks import TaskManager

    loaded = TaskManager(include_defaults=False, include_path=[str(PACKAGE)], metadata={"data": str(data)}).load(
        ["alora_pile_10k"]
    )
    task = loaded["tasks"]["alora_pile_10k"]
    docs = list(task.eval_docs)
    assert [task.doc_to_target(doc) for doc in docs] == [text for texts in TEXTS.values() for text in texts]
    assert task.doc_to_target({"text": "[1, 2]"}, "{{text}}") == [1, 2]  # the trap


@pytest.mark.parametrize("name", list(RECORDS))
def test_the_same_questions_as_lm_evals_own_task(name: str, data: Path, tmp_path: Path) -> None:
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False, include_path=[str(PACKAGE)], metadata={"data": str(data)})
    ours = manager.load([f"alora_{name}"])["tasks"][f"alora_{name}"]
    own = Path(lm_eval.tasks.__file__).parent / name / f"{name}.yaml"
    (tmp_path / "own.yaml").write_text(
        f"include: {own}\ntask: own\ntest_split: test\ntraining_split: null\nvalidation_split: null\n"
        "custom_dataset: !function alora_trainer.evaluation.task_documents.load_documents\n"
        f"dataset_kwargs: {{task: {name}, data: {data}}}\n"
    )
    theirs = TaskManager(include_defaults=False, include_path=[str(tmp_path)]).load(["own"])["tasks"]["own"]
    assert len(list(ours.eval_docs)) == len(RECORDS[name])
    for doc in ours.eval_docs:
        for method in ("doc_to_text", "doc_to_choice", "doc_to_target"):
            assert getattr(ours, method)(doc) == getattr(theirs, method)(doc)
    # And the same as what is trained on.
    task = get_task(name)
    record = dict(next(iter(ours.eval_docs)))
    assert ours.doc_to_text(record) == task.prompt(record)


def test_where_documents_come_from(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(load_documents(task="sciq", data=str(data), version=1.0)["test"]) == 7
    monkeypatch.setenv("ALORA_TASK_DATA", str(data))
    assert len(load_documents(task="piqa")["test"]) == 5
    assert load_documents(task="text", text=str(data / "pile_10k.jsonl"))["test"]["text"][0] == TEXTS["river"][0]
    with pytest.raises(ALoRAError, match="has none of sciq.jsonl"):
        load_documents(task="sciq", data=str(data / "sciq"))
    with pytest.raises(ALoRAError, match="pass --metadata"):
        load_documents(task="text")


def test_every_task_says_where_it_comes_from_and_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert folder == PACKAGE
    files = {path.stem: path.read_text() for path in folder.rglob("*.yaml")}
    assert set(files) == {
        "alora_general", "alora_domain", "alora_pile_10k", "alora_text", "alora_sciq", "alora_piqa", "alora_medmcqa"
    }  # fmt: skip
    groups = {name: yaml.safe_load(files[name])["task"] for name in ("alora_general", "alora_domain")}
    assert groups == {
        "alora_general": ["alora_pile_10k"],
        "alora_domain": ["alora_sciq", "alora_piqa", "alora_medmcqa"],
    }


def test_real_items(shared: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(shared / "models" / "base-5m", dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "base-5m")
    for name, split in (("sciq", "test"), ("piqa", "validation"), ("medmcqa", "validation")):
        records = read_lines(shared / "data" / "tasks" / name / f"{split}.jsonl.gz")[:5]
        write_lines(tmp_path / f"{name}.jsonl", records)
    theirs = plain_lm_eval(model, tokenizer, ["alora_domain"], {"data": str(tmp_path)})
    for name in RECORDS:
        task = get_task(name)
        path = tmp_path / "ours" / f"{name}.jsonl"
        write_lines(path, [task.convert(record) for record in read_lines(tmp_path / f"{name}.jsonl")])
        found = evaluate_as_json(model, tokenizer, general={}, tasks={name: path}, task_specs=[task])["tasks"][name]
        assert found["acc"] == theirs[f"alora_{name}"]["acc,none"]
        assert found["acc_norm"] == theirs[f"alora_{name}"]["acc_norm,none"]
