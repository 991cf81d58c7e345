"""Tasks from templates: the recipe says which fields make the prompt, and which the answer."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alora_trainer.data.choices import READINGS, answer_index, choices_of, index_of
from alora_trainer.data.records import Record, field_of, is_missing, shown, string_field, text_of
from alora_trainer.data.sources import check_keys
from alora_trainer.data.task import Doc, Task, free_task
from alora_trainer.errors import ALoRAError

TEMPLATE_KEYS = ("name", "prompt", "completion", "choices", "answer", "answer_is", "target_delimiter", "missing")
MISSING = ("error", "blank")


def template_task(spec: Mapping[str, Any]) -> Task:
    """A task from its specification; see `tasks.get_task`. Raises ALoRAError for a key or a template that is wrong."""
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
    blank = _one_of(spec.get("missing", MISSING[0]), MISSING, f"missing of the task {name!r}") == "blank"
    prompt = _template(spec["prompt"], f"the prompt of the task {name!r}", blank)
    if "completion" in spec:
        if "answer_is" in spec:
            raise ALoRAError(f"answer_is of the task {name!r} is for 'choices' and 'answer': leave it out")
        answer = _template(spec["completion"], f"the completion of the task {name!r}", blank)
        return free_task(name, lambda record: _free_doc(record, prompt, answer, delimiter), delimiter, spec["prompt"])
    columns, answer_column = spec["choices"], spec["answer"]
    listed = isinstance(columns, Sequence) and len(columns) > 1 and all(isinstance(column, str) for column in columns)
    if not isinstance(columns, str) and not listed:
        raise ALoRAError(f"the choices of the task {name!r} must name a list column, or two columns or more")
    if not isinstance(answer_column, str):
        raise ALoRAError(f"the answer of the task {name!r} must name a column, not {answer_column!r}")
    reading = spec.get("answer_is")
    if reading is not None:
        _one_of(reading, READINGS, f"answer_is of the task {name!r}")
    return Task(
        name=name,
        lm_eval_task=None,
        prompt=lambda doc: string_field(doc, "prompt"),
        completion=lambda doc: (
            delimiter + choices_of(doc, "choices").texts[index_of(doc, "answer", len(doc["choices"]))]
        ),
        convert=lambda record: _choice_doc(record, prompt, columns, answer_column, reading),
        identity=lambda doc: string_field(doc, "prompt"),
        choices=lambda doc: choices_of(doc, "choices").texts,
        target_delimiter=delimiter,
        prompt_format=spec["prompt"],
    )


def _one_of(value: object, allowed: Sequence[str], what: str) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise ALoRAError(f"{what} must be one of {', '.join(allowed)}, not {value!r}")
    return value


def _template(text: object, what: str, blank: bool) -> Callable[[Record], str]:
    """A function that fills the template in; only plain field names are allowed, so a template cannot reach further.

    With `blank`, what a record does not have (null, NaN, or no such field) is nothing at all; without, it is refused.
    """
    if not isinstance(text, str):
        raise ALoRAError(f"{what} must be a template string, not {text!r}")
    try:
        parsed = list(string.Formatter().parse(text))
    except ValueError as error:
        raise ALoRAError(f"{what} is not a template ({error}): write a literal brace as {{{{ or }}}}") from error
    for _, column, form, conversion in parsed:
        if column is not None and (not column.isidentifier() or form or conversion):
            raise ALoRAError(f"{what} has {{{column}}}: write just a column's name in braces, a literal brace twice")
    if all(column is None for _, column, *_ in parsed):
        # Others write a column's bare name here. The same text for every item is nothing that can be learned or told apart.
        meant = f"{{{text}}}" if text.isidentifier() else "{question}"
        raise ALoRAError(f"{what}, {shown(text)}, names no column: write one in braces, such as {meant!r}")

    def value(record: Record, column: str) -> str:
        if blank and is_missing(record.get(column)):
            return ""
        found = field_of(record, column)
        if is_missing(found):
            raise ALoRAError(
                f"its field {column!r} is {shown(found)}: fill it in, or write `missing: blank` into the task"
            )
        return text_of(found, f"its field {column!r}")

    def fill(record: Record) -> str:
        return "".join(
            literal + (value(record, column) if column is not None else "") for literal, column, *_ in parsed
        )

    return fill


def _free_doc(record: Record, prompt: Callable[[Record], str], answer: Callable[[Record], str], delimiter: str) -> Doc:
    completion = answer(record)
    if not completion.strip():
        raise ALoRAError("its completion is blank")
    return {"prompt": prompt(record), "completion": delimiter + completion}


def _choice_doc(
    record: Record, prompt: Callable[[Record], str], columns: str | Sequence[str], answer: str, reading: str | None
) -> Doc:
    choices = choices_of(record, columns)
    if not isinstance(columns, str) and answer in columns:
        index = list(columns).index(answer)  # a column of its own for the right answer: no text needs to be told apart
    else:
        index = answer_index(field_of(record, answer), choices, f"its answer, the field {answer!r},", reading)
    return {"prompt": prompt(record), "choices": choices.texts, "answer": index}
