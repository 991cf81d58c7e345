"""Prompts and answers must be those that lm-eval scores; everything else is refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alora_trainer.data.sources import load_source, write_lines
from alora_trainer.data.tasks import BUILT_IN, Task, get_task
from alora_trainer.errors import ALoRAError
from alora_trainer.evaluation.lm_tasks import task_manager, task_name, write_task_files

SCIQ = {"question": "What?", "distractor1": "a", "distractor2": 'b\'s "c"', "distractor3": "d", "correct_answer": "e"}
RECORDS: dict[str, list[dict[str, Any]]] = {
    "sciq": [
        SCIQ | {"support": "  Because of {this} and that.\n"},
        SCIQ | {"support": "", "question": "Ä {{x}}?", "extra": 1},
    ],
    "piqa": [
        {"goal": "To do this,", "sol1": "use [a] tool", "sol2": "don't", "label": 1},
        {"goal": "How\nso?", "sol1": " one", "sol2": "two ", "label": 0},
    ],
    "medmcqa": [
        {"question": "Which is not so:", "opa": "1", "opb": "2 ", "opc": "x", "opd": "y", "cop": 3, "id": "i-1"},
        {"question": "Ü?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 0, "exp": None},
    ],
    "openbookqa": [
        {"id": "8-1", "question": "The sun is", "choices": ["hot", "cold", "wet", "dry"], "answer": 0},
        {
            "question_stem": "Rain is",
            "choices": {"text": ["hot", "it's wet"], "label": ["A", "B"]},
            "answerKey": "B ",
        },
    ],
}
LM_EVALS = [name for name, task in BUILT_IN.items() if task.lm_eval_task is not None]
ELEMENTS = {"name": "elements", "prompt": "Question: {question}\nAnswer:", "choices": "choices", "answer": "answer"}


def lm_eval_tasks(task: Task, docs: list[dict[str, Any]], folder: Path) -> Any:
    """lm-eval's task object on our documents."""
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(folder / "docs.jsonl", docs)
    write_task_files(folder, [], [(task, folder / "docs.jsonl")])
    return task_manager(folder).load([task_name(0)])["tasks"][task_name(0)]


def requests(theirs: Any, doc: dict[str, Any]) -> list[tuple[str, str]]:
    """The (context, continuation) pairs that lm-eval scores."""
    made = theirs.construct_requests(doc, theirs.fewshot_context(doc, 0), metadata=("t", 0, 1))
    return [instance.args for instance in (made if isinstance(made, list) else [made])]


def check_identical(task: Task, docs: list[dict[str, Any]], folder: Path) -> None:
    theirs = lm_eval_tasks(task, docs, folder)
    documents = list(theirs.eval_docs)
    assert len(documents) == len(docs)
    for doc in documents:
        pairs = requests(theirs, doc)
        assert {context for context, _ in pairs} == {task.prompt(doc)}
        if task.choices is None:
            assert pairs[0][1] == task.completion(doc)
            continue
        assert [answer for _, answer in pairs] == [task.target_delimiter + choice for choice in task.choices(doc)]
        target = theirs.doc_to_target(doc)
        assert pairs[target][1] == task.completion(doc)


class TestBuiltIn:
    @pytest.mark.parametrize("name", LM_EVALS)
    def test_identical_to_lm_eval(self, name: str, tmp_path: Path) -> None:
        task = get_task(name)
        for number, record in enumerate(RECORDS[name]):  # one by one: lm-eval reads one schema from a file
            check_identical(task, [task.convert(record)], tmp_path / str(number))

    @pytest.mark.parametrize("name", LM_EVALS)
    def test_identical_on_real_items(self, name: str, tmp_path: Path, shared: Path) -> None:
        task = get_task(name)
        files = {"piqa": "validation", "medmcqa": "validation"}
        records = load_source(f"data/tasks/{name}/{files.get(name, 'test')}.jsonl.gz", base=shared)
        docs = [task.convert(record) for record in records]
        check_identical(task, docs[::10], tmp_path)

    @pytest.mark.parametrize("name", LM_EVALS)
    def test_hub_data_are_those_of_lm_evals_task(self, name: str) -> None:
        import lm_eval.tasks
        from lm_eval.tasks._yaml_loader import load_yaml

        config = load_yaml(Path(lm_eval.tasks.__file__).parent / name / f"{name}.yaml", resolve_func=False)
        hub = get_task(name).hub
        assert {source["hub"] for source in hub.values()} == {config["dataset_path"]}
        assert {source.get("name") for source in hub.values()} == {config.get("dataset_name")}
        assert hub["test"]["split"] == (config.get("test_split") or config["validation_split"])

    @pytest.mark.parametrize(
        ("name", "change", "message"),
        [
            ("sciq", {"support": None}, "'support' is null, not a string"),
            ("piqa", {"label": -1}, r"'label' is -1 \(type int\), not a choice from 0 to 1"),
            ("piqa", {"label": True}, "'label' is true"),
            ("medmcqa", {"cop": 4}, r"'cop' is 4 \(type int\), not a choice from 0 to 3"),
            ("openbookqa", {"answer": 4}, "'answer' is 4"),
        ],
    )
    def test_wrong_items(self, name: str, change: dict[str, Any], message: str) -> None:
        with pytest.raises(ALoRAError, match=message):
            get_task(name).convert(RECORDS[name][0] | change)

    def test_missing_field_and_unknown_label(self) -> None:
        with pytest.raises(ALoRAError, match=r"no field 'question' \(its fields are goal\)"):
            get_task("sciq").convert({"goal": "x"})
        with pytest.raises(ALoRAError, match="'answerKey' is 'E', no label of its 2 choices"):
            get_task("openbookqa").convert(RECORDS["openbookqa"][1] | {"answerKey": "E"})


class TestTemplates:
    RECORD = {"question": "Which is {it}?", "choices": ["C", "18"], "answer": 1, "one": "x", "two": 2, "right": "x"}

    def test_choices_from_a_list(self, tmp_path: Path) -> None:
        task = get_task(ELEMENTS)
        doc = task.convert(self.RECORD)
        assert task.prompt(doc) == task.identity(doc) == "Question: Which is {it}?\nAnswer:"
        assert task.completion(doc) == " 18" and task.lm_eval_task is None
        check_identical(task, [doc], tmp_path)

    def test_choices_from_columns_and_a_delimiter(self, tmp_path: Path) -> None:
        spec = {"name": "t", "prompt": "{{{question}}}\n", "choices": ["one", "two"], "answer": "right"}
        task = get_task(spec | {"target_delimiter": ""})
        doc = task.convert(self.RECORD)
        assert (task.prompt(doc), task.completion(doc)) == ("{Which is {it}?}\n", "x")
        check_identical(task, [doc], tmp_path)

    def test_a_column_that_always_has_the_right_answer(self, tmp_path: Path) -> None:
        task = get_task({"name": "t", "prompt": "{question}", "choices": ["one", "two", "right"], "answer": "right"})
        doc = task.convert(self.RECORD)  # "right" has the same text as "one"
        assert (doc["answer"], task.completion(doc)) == (2, " x")
        check_identical(task, [doc], tmp_path)

    def test_free_answer(self, tmp_path: Path) -> None:
        task = get_task({"name": "t", "prompt": "{question}", "completion": "{two}, {one}"})
        doc = task.convert(self.RECORD)
        assert task.completion(doc) == " 2, x" and task.choices is None
        check_identical(task, [doc], tmp_path)

    @pytest.mark.parametrize(("answer", "index"), [(0, 0), ("18", 1), ("A", 0), ("B", 1), ("C", 0)])
    def test_answers(self, answer: int | str, index: int) -> None:
        assert get_task(ELEMENTS).convert(self.RECORD | {"answer": answer})["answer"] == index

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"answer": 2}, "no index from 0"),
            ({"answer": -1}, "no index from 0"),
            ({"answer": "D"}, "no text of its 2 choices"),
            ({"choices": ["C", " "]}, "none of them blank"),
            ({"choices": ["C"]}, "two or more"),
            ({"choices": "CD"}, "is 'CD', not a list"),
        ],
    )
    def test_wrong_items(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(ALoRAError, match=message):
            get_task(ELEMENTS).convert(self.RECORD | change)

    def test_missing_column_in_a_template(self) -> None:
        with pytest.raises(ALoRAError, match="no field 'question'"):
            get_task(ELEMENTS).convert({"choices": ["a", "b"], "answer": 0})

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("sciqq", "there is no task 'sciqq'"),
            (3, "must be a name or a mapping"),
            ({"promt": "x"}, "did you mean 'prompt'"),
            ({"prompt": "x"}, "needs 'name'"),
            ({"name": "t", "prompt": "x"}, "either 'completion', or 'choices' and 'answer'"),
            ({"name": "t", "prompt": "x", "choices": "c"}, "either 'completion', or"),
            (ELEMENTS | {"completion": "x"}, "either 'completion', or"),
            (ELEMENTS | {"choices": ["one"]}, "two columns or more"),
            (ELEMENTS | {"choices": ["one", None]}, "two columns or more"),
            (ELEMENTS | {"answer": ["one"]}, "the answer of the task 'elements' must name a column"),
            (ELEMENTS | {"prompt": "{question.__class__}"}, "write just a column's name"),
            (ELEMENTS | {"prompt": "{}"}, "write just a column's name"),
            (ELEMENTS | {"prompt": "{question"}, "not a template"),
            (
                ELEMENTS | {"prompt": "question"},
                r"'question', names no column: write one in braces, such as '\{question\}'",
            ),
            (ELEMENTS | {"prompt": "What is {{it}}?"}, "names no column"),
            ({"name": "t", "prompt": "{a}", "completion": "b"}, r"the completion of .* such as '\{b\}'"),
            (ELEMENTS | {"target_delimiter": 1}, "must be a string"),
        ],
    )
    def test_wrong_specs(self, spec: Any, message: str) -> None:
        with pytest.raises(ALoRAError, match=message):
            get_task(spec)
