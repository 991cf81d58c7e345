"""Tasks with one right answer: how a record becomes a prompt and a completion, identical to what lm-eval scores."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from alora_trainer.data.chat import check_chat_spec, is_chat, render_chat
from alora_trainer.data.sources import check_keys
from alora_trainer.errors import ALoRAError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Record = Mapping[str, Any]
Doc = dict[str, Any]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
TEMPLATE_KEYS = ("name", "prompt", "completion", "choices", "answer", "target_delimiter")


@dataclass(frozen=True)
class Task:
    """One kind of question.

    ``convert`` turns a record of a source into the document that lm-eval reads and raises ALoRAError for one that
    cannot be scored; all other functions take such a document.

    Attributes:
        name: what results are filed under.
        lm_eval_task: lm-eval's built-in task of the same prompts, or None for a task from templates.
        prompt: the text before the answer.
        completion: the right answer with the delimiter that lm-eval puts before it.
        convert: record -> document.
        identity: the question's text, by which an item of the training set is recognised in the test set.
        choices: the answers to choose from as lm-eval scores them, without delimiter; None for a free answer.
        target_delimiter: what stands between prompt and answer.
        hub: split ("train", "test") -> the source on the Hub that lm-eval's task reads; empty for templates.
        hub_items: split -> how many items it has there.
        choice_count: how many answers an item has to choose from, where that is the same for all and known beforehand.
        test_note: what has to be known of the split that is scored; travels with the results.
    """

    name: str
    lm_eval_task: str | None
    prompt: Callable[[Doc], str]
    completion: Callable[[Doc], str]
    convert: Callable[[Record], Doc]
    identity: Callable[[Doc], str]
    choices: Callable[[Doc], list[str]] | None
    target_delimiter: str = " "
    hub: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    hub_items: Mapping[str, int] = field(default_factory=dict)
    choice_count: int | None = None
    test_note: str | None = None


def get_task(spec: str | Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None = None) -> Task:
    """A task by name, from templates, or of conversations.

    Args:
        spec: ``sciq``, ``piqa``, ``medmcqa`` or ``openbookqa``; or a mapping with ``name``, ``prompt`` (a template such
            as ``"Question: {question}\\nAnswer:"``) and either ``completion`` (a template for a free answer) or
            ``choices`` (the column with the list of answers, or a list of columns with one answer each) and ``answer``
            (the column with the right one: its index from 0, its letter or its text; or that one of several columns in
            ``choices`` which always has the right one). ``target_delimiter``, one space if left out, stands between
            prompt and answer.
            Conversations are ``{name: ..., messages: COLUMN}``, a column with lists of ``{role, content}``: see `data.chat`.
        tokenizer: the model's, whose chat template writes conversations; only `Task.convert` needs it, and only for these.

    Raises:
        ALoRAError: the name, a key or a template is wrong.
    """
    if isinstance(spec, str):
        if spec not in BUILT_IN:
            raise ALoRAError(f"there is no task {spec!r}: use {', '.join(BUILT_IN)}, or give a mapping with templates")
        return BUILT_IN[spec]
    if not isinstance(spec, Mapping):
        raise ALoRAError(f"a task must be a name or a mapping with templates, not {spec!r}")
    return _chat_task(spec, tokenizer) if is_chat(spec) else _template_task(spec)


def _field(record: Record, key: str, kind: type | tuple[type, ...] = str) -> Any:
    if key not in record:
        raise ALoRAError(f"it has no field {key!r} (its fields are {', '.join(map(str, record))})")
    value = record[key]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not object):
        wanted = kind.__name__ if isinstance(kind, type) else " or ".join(one.__name__ for one in kind)
        raise ALoRAError(f"its field {key!r} is {value!r}, not of type {wanted}")
    return value


def _label(record: Record, key: str, count: int) -> int:
    label = _field(record, key, int)
    if not 0 <= label < count:
        raise ALoRAError(f"its {key!r} is {label}, not a choice from 0 to {count - 1}: leave unlabelled items out")
    return int(label)


# --- the four built-in tasks, each in the schema of lm-eval's own ---


def _sciq_convert(record: Record) -> Doc:
    fields = ("question", "distractor1", "distractor2", "distractor3", "correct_answer", "support")
    return {key: _field(record, key) for key in fields}


def _sciq_choices(doc: Doc) -> list[str]:
    return [doc["distractor1"], doc["distractor2"], doc["distractor3"], doc["correct_answer"]]


def _piqa_convert(record: Record) -> Doc:
    return {key: _field(record, key) for key in ("goal", "sol1", "sol2")} | {"label": _label(record, "label", 2)}


def _medmcqa_convert(record: Record) -> Doc:
    fields = ("question", "opa", "opb", "opc", "opd")
    return {key: _field(record, key) for key in fields} | {"cop": _label(record, "cop", 4)}


def _medmcqa_prompt(doc: Doc) -> str:
    options = "".join(f"{letter}. {doc[f'op{letter.lower()}']}\n" for letter in "ABCD")
    return f"Question: {doc['question']}\nChoices:\n{options}Answer:"


def _openbookqa_convert(record: Record) -> Doc:
    """From the Hub's schema (as it is) or from the flat one of {question, choices: [text, ...], answer: index}."""
    if "question_stem" in record:
        choices = _field(record, "choices", Mapping)
        texts, labels, key = list(choices["text"]), list(choices["label"]), _field(record, "answerKey").strip()
        if key not in labels:
            raise ALoRAError(f"its 'answerKey' is {key!r}, none of the labels {', '.join(labels)}")
        question = _field(record, "question_stem")
    else:
        texts = [str(choice) for choice in _field(record, "choices", Sequence)]
        labels = list(LETTERS[: len(texts)])
        key = labels[_label(record, "answer", len(texts))]
        question = _field(record, "question")
    return {"question_stem": question, "choices": {"text": texts, "label": labels}, "answerKey": key}


def _openbookqa_completion(doc: Doc) -> str:
    return " " + str(doc["choices"]["text"][doc["choices"]["label"].index(doc["answerKey"])])


BUILT_IN: Mapping[str, Task] = MappingProxyType(
    {
        "sciq": Task(
            name="sciq",
            lm_eval_task="sciq",
            prompt=lambda doc: f"{doc['support'].lstrip()}\nQuestion: {doc['question']}\nAnswer:",
            completion=lambda doc: f" {doc['correct_answer']}",
            convert=_sciq_convert,
            identity=lambda doc: str(doc["question"]),
            choices=_sciq_choices,
            hub={"train": {"hub": "allenai/sciq"}, "test": {"hub": "allenai/sciq", "split": "test"}},
            hub_items={"train": 11679, "test": 1000},
            choice_count=4,
        ),
        "piqa": Task(
            name="piqa",
            lm_eval_task="piqa",
            prompt=lambda doc: f"Question: {doc['goal']}\nAnswer:",
            completion=lambda doc: f" {doc[('sol1', 'sol2')[doc['label']]]}",
            convert=_piqa_convert,
            identity=lambda doc: str(doc["goal"]),
            choices=lambda doc: [doc["sol1"], doc["sol2"]],
            hub={"train": {"hub": "baber/piqa"}, "test": {"hub": "baber/piqa", "split": "validation"}},
            hub_items={"train": 16113, "test": 1838},
            choice_count=2,
            test_note="the validation split is scored, because the labels of the test split are not public",
        ),
        "medmcqa": Task(
            name="medmcqa",
            lm_eval_task="medmcqa",
            prompt=_medmcqa_prompt,
            completion=lambda doc: f" {LETTERS[doc['cop']]}",
            convert=_medmcqa_convert,
            identity=lambda doc: str(doc["question"]),
            choices=lambda doc: list("ABCD"),
            hub={
                "train": {"hub": "openlifescienceai/medmcqa"},
                "test": {"hub": "openlifescienceai/medmcqa", "split": "validation"},
            },
            hub_items={"train": 182822, "test": 4183},
            choice_count=4,
            test_note="the validation split is scored, because the labels of the test split are not public; lm-eval's medmcqa "
            "declares validation as its test split",
        ),
        "openbookqa": Task(
            name="openbookqa",
            lm_eval_task="openbookqa",
            prompt=lambda doc: str(doc["question_stem"]),
            completion=_openbookqa_completion,
            convert=_openbookqa_convert,
            identity=lambda doc: str(doc["question_stem"]),
            choices=lambda doc: list(doc["choices"]["text"]),
            hub={
                "train": {"hub": "allenai/openbookqa", "name": "main"},
                "test": {"hub": "allenai/openbookqa", "name": "main", "split": "test"},
            },
            hub_items={"train": 4957, "test": 500},
            choice_count=4,
        ),
    }
)


# --- conversations ---


def _chat_task(spec: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None) -> Task:
    name, column = check_chat_spec(spec)

    def convert(record: Record) -> Doc:
        prompt, completion = render_chat(_field(record, column, object), tokenizer)
        return {"prompt": prompt, "completion": completion}

    return Task(
        name=name,
        lm_eval_task=None,
        prompt=lambda doc: str(doc["prompt"]),
        completion=lambda doc: str(doc["completion"]),
        convert=convert,
        identity=lambda doc: str(doc["prompt"]),
        choices=None,
        target_delimiter="",
    )


# --- tasks from templates ---


def _template_task(spec: Mapping[str, Any]) -> Task:
    check_keys(spec, TEMPLATE_KEYS, "the task")
    for key in ("name", "prompt"):
        if not isinstance(spec.get(key), str) or not spec[key]:
            raise ALoRAError(f"the task needs {key!r}, a string")
    name = spec["name"]
    if ("choices" in spec) != ("answer" in spec) or ("completion" in spec) == ("choices" in spec):
        raise ALoRAError(f"the task {name!r} needs either 'completion', or 'choices' and 'answer'")
    delimiter = spec.get("target_delimiter", " ")
    if not isinstance(delimiter, str):
        raise ALoRAError(f"the target_delimiter of the task {name!r} must be a string, not {delimiter!r}")
    prompt = _template(spec["prompt"], f"the prompt of the task {name!r}")
    if "completion" in spec:
        answer = _template(spec["completion"], f"the completion of the task {name!r}")
        return Task(
            name=name,
            lm_eval_task=None,
            prompt=lambda doc: str(doc["prompt"]),
            completion=lambda doc: str(doc["completion"]),
            convert=lambda record: _free_doc(record, prompt, answer, delimiter),
            identity=lambda doc: str(doc["prompt"]),
            choices=None,
            target_delimiter=delimiter,
        )
    columns, answer_column = spec["choices"], spec["answer"]
    if not isinstance(columns, str) and (not isinstance(columns, Sequence) or len(columns) < 2):
        raise ALoRAError(f"the choices of the task {name!r} must name a list column, or two columns or more")
    return Task(
        name=name,
        lm_eval_task=None,
        prompt=lambda doc: str(doc["prompt"]),
        completion=lambda doc: delimiter + str(doc["choices"][doc["answer"]]),
        convert=lambda record: _choice_doc(record, prompt, columns, answer_column),
        identity=lambda doc: str(doc["prompt"]),
        choices=lambda doc: list(doc["choices"]),
        target_delimiter=delimiter,
    )


def _template(text: object, what: str) -> Callable[[Record], str]:
    """A function that fills the template in; only plain field names are allowed, so a template cannot reach further."""
    if not isinstance(text, str):
        raise ALoRAError(f"{what} must be a template string, not {text!r}")
    try:
        parsed = list(string.Formatter().parse(text))
    except ValueError as error:
        raise ALoRAError(f"{what} is not a template ({error}): write a literal brace as {{{{ or }}}}") from error
    for _, column, form, conversion in parsed:
        if column is not None and (not column.isidentifier() or form or conversion):
            raise ALoRAError(f"{what} has {{{column}}}: write just a column's name in braces, a literal brace twice")

    def fill(record: Record) -> str:
        values = [str(_field(record, column, object)) if column is not None else "" for _, column, _, _ in parsed]
        return "".join(literal + value for (literal, *_), value in zip(parsed, values, strict=True))

    return fill


def _free_doc(record: Record, prompt: Callable[[Record], str], answer: Callable[[Record], str], delimiter: str) -> Doc:
    completion = answer(record)
    if not completion.strip():
        raise ALoRAError("its completion is blank")
    return {"prompt": prompt(record), "completion": delimiter + completion}


def _choice_doc(record: Record, prompt: Callable[[Record], str], columns: str | Sequence[str], answer: str) -> Doc:
    if isinstance(columns, str):
        values = _field(record, columns, Sequence)
        if isinstance(values, str):
            raise ALoRAError(f"its field {columns!r} is a string, not a list of choices")
    else:
        values = [_field(record, column, (str, int, float)) for column in columns]
    choices = [str(value) for value in values]
    if len(choices) < 2 or not all(choice.strip() for choice in choices):
        raise ALoRAError(f"its choices are {choices!r}: two or more are needed, none of them blank")
    if not isinstance(columns, str) and answer in columns:
        index = list(columns).index(answer)  # a column of its own for the right answer: no text needs to be told apart
    else:
        index = _answer_index(_field(record, answer, (int, str)), choices)
    return {"prompt": prompt(record), "choices": choices, "answer": index}


def _answer_index(answer: int | str, choices: list[str]) -> int:
    if isinstance(answer, str):
        letters = LETTERS[: len(choices)]
        if choices.count(answer) == 1:
            return choices.index(answer)
        if len(answer) == 1 and answer in letters:
            return letters.index(answer)
    elif 0 <= answer < len(choices):
        return answer
    raise ALoRAError(f"its answer {answer!r} is no index from 0 to {len(choices) - 1}, no letter and no choice's text")
