"""The forms that records come in, and how each becomes items of one task.

A form (`RecordForm`) says whether a record has it, and writes it with columns of ours: so files of different people become
one, and the recipe's task stays in words that can be read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alora_trainer.data.chat import written_plainly
from alora_trainer.data.choices import LETTERS, READINGS, Choices, answer_index, choices_of
from alora_trainer.data.detection import columns
from alora_trainer.data.records import Record, field_of, is_missing, text_of
from alora_trainer.errors import ALoRAError

# The recipe's task, or a function that makes it of the records in the columns of ours.
Spec = str | Mapping[str, Any]

_BUILT_IN_COLUMNS = {
    "sciq": ("question", "distractor1", "distractor2", "distractor3", "correct_answer", "support"),
    "piqa": ("goal", "sol1", "sol2", "label"),
    "medmcqa": ("question", "opa", "opb", "opc", "opd", "cop"),
    "openbookqa": ("question_stem", "choices", "answerKey"),
}
# (names of the prompt's column, names of the answer's column, template of the prompt, what it is called)
PAIRS: tuple[tuple[tuple[str, ...], tuple[str, ...], str, str], ...] = (
    (
        ("prompt",),
        ("completion", "response", "output", "answer", "target", "chosen"),
        "{prompt}",
        "prompt and completion",
    ),
    (
        ("question", "query", "problem"),
        ("answer", "response", "output", "completion", "solution", "answers"),
        "Question: {prompt}\nAnswer:",
        "question and answer",
    ),
    (
        ("instruction",),
        ("response", "output", "completion", "answer"),
        "{prompt}\n\nResponse:",
        "instruction and response",
    ),
    (
        ("input", "source", "user"),
        ("output", "target", "response", "assistant"),
        "{prompt}\n\nOutput:",
        "input and output",
    ),
    (
        ("text", "document", "article", "body"),
        ("summary", "highlights", "tldr"),
        "{prompt}\n\nSummary:",
        "text and summary",
    ),
    (
        ("text", "sentence", "content", "document"),
        ("label", "category", "class"),
        "{prompt}\n\nLabel:",
        "text and label",
    ),
)


@dataclass(frozen=True)
class RecordForm:
    """One form of records.

    Attributes:
        title: what it is, for people.
        matches: whether a record has it.
        convert: the record with columns of ours; raises ALoRAError for one that cannot be used.
        spec: the task of such records.
        loss_on: ``answer`` or ``all``.
        is_text: plain text, which is cut into pieces before it is converted.
        prompt_format: how the prompts of ours are made, columns in braces; empty where the task itself says so, or none is.
    """

    title: str
    matches: Callable[[Record], bool]
    convert: Callable[[Record], dict[str, Any]]
    spec: Spec
    loss_on: str = "answer"
    is_text: bool = False
    prompt_format: str = ""


def kind_of(records: Sequence[Record], *, has_chat_template: bool) -> tuple[RecordForm, int] | None:
    """The form that most of the records have, and how many have it; the first in the order of `kinds` of those that tie.

    Args:
        records: of one file.
        has_chat_template: whether the tokenizer writes conversations itself.
    """
    counted = [(kind, sum(map(kind.matches, records))) for kind in kinds(records, has_chat_template=has_chat_template)]
    best = max((count for _, count in counted), default=0)
    return next(((kind, count) for kind, count in counted if count == best), None) if best else None


def kinds(records: Sequence[Record], *, has_chat_template: bool) -> list[RecordForm]:
    """All forms that are known, the more telling ones first."""
    return [
        *map(_built_in, _BUILT_IN_COLUMNS),
        _conversations(has_chat_template),
        RecordForm("instruction, input and output (alpaca)", _is_alpaca, _alpaca, "alpaca"),
        _choices(records),
        *(_pair(*pair) for pair in PAIRS),
        RecordForm(
            "plain text", lambda record: _text_column(record) is not None, _text, _TEXT_SPEC, "all", is_text=True
        ),
    ]


def by_templates(prompt: str, completion: str) -> RecordForm:
    """The form that a person names: templates of the columns for prompt and completion."""
    spec = {"name": "items", "prompt": prompt, "completion": completion, "target_delimiter": ""}
    return RecordForm("the given templates", lambda record: True, dict, spec)


def _built_in(name: str) -> RecordForm:
    needed = _BUILT_IN_COLUMNS[name]
    return RecordForm(
        f"the columns of {name}",
        lambda record: all(record.get(column) is not None for column in needed),
        lambda record: {column: record[column] for column in (*needed, "id") if column in record},
        name,
    )


# --- conversations ---


def _conversations(has_chat_template: bool) -> RecordForm:
    if has_chat_template:
        spec: Spec = {"name": "chat", "messages": "messages"}
        return RecordForm("conversations", _is_chat, lambda record: {"messages": record[_messages(record)]}, spec)
    spec = {"name": "chat", "prompt": "{prompt}", "completion": "{completion}", "target_delimiter": ""}
    return RecordForm(
        "conversations, written as User: and Assistant: since the model has no chat template",
        _is_chat,
        _plain_chat,
        spec,
        prompt_format="User: {user}\n\nAssistant:",
    )


def _messages(record: Record) -> str:
    found = _message_column(record)
    assert found is not None  # `matches` was asked before
    return found


def _message_column(record: Record) -> str | None:
    for name in (columns.first_of(record, columns.MESSAGES), *record):
        value = record.get(name) if name is not None else None
        turns = [turn for turn in value if isinstance(turn, Mapping)] if isinstance(value, list) else []
        if turns and any(
            ("role" in turn and "content" in turn) or ("from" in turn and "value" in turn) for turn in turns
        ):
            return name
    return None


def _is_chat(record: Record) -> bool:
    return _message_column(record) is not None


def _plain_chat(record: Record) -> dict[str, Any]:
    prompt, completion = written_plainly(record[_messages(record)])
    return {"prompt": prompt, "completion": completion}


# --- instructions and pairs ---


def _is_alpaca(record: Record) -> bool:
    own = columns.by_lower_case(record)
    return "instruction" in own and "output" in own and set(own) & {"input", "context"} != set()


def _alpaca(record: Record) -> dict[str, Any]:
    own = columns.by_lower_case(record)
    more = own.get("input") or own["context"]
    return {"instruction": record[own["instruction"]], "input": record[more], "output": record[own["output"]]}


def _pair(prompts: tuple[str, ...], answers: tuple[str, ...], template: str, title: str) -> RecordForm:
    def found(record: Record) -> tuple[str | None, str | None]:
        return columns.first_of(record, prompts), columns.first_of(record, answers)

    def matches(record: Record) -> bool:
        prompt, answer = found(record)
        return prompt is not None and answer is not None

    def convert(record: Record) -> dict[str, Any]:
        prompt, answer = found(record)
        if prompt is None or answer is None:
            missing, names = ("prompt", prompts) if prompt is None else ("answer", answers)
            raise ALoRAError(f"it has no {missing} (a value in one of the columns {', '.join(names)})")
        asked = text_of(record[prompt], f"its field {prompt!r}")
        told = _context(record, {prompt, answer})
        said = text_of(_only(record[answer]), f"its field {answer!r}")
        return {"prompt": told + template.replace("{prompt}", asked), "completion": _apart(template, asked, said)}

    spec = {"name": "items", "prompt": "{prompt}", "completion": "{completion}", "target_delimiter": ""}
    return RecordForm(title, matches, convert, spec, prompt_format=template.replace("{prompt}", f"{{{prompts[0]}}}"))


def _context(record: Record, used: set[str]) -> str:
    """The passage that a question is about, with what parts it from the question; nothing if there is none."""
    name = columns.first_of(record, columns.CONTEXTS)
    if name is None or name in used or not isinstance(record[name], str) or not record[name].strip():
        return ""
    return text_of(record[name], f"its field {name!r}").strip() + "\n\n"


def _only(value: Any) -> Any:
    """The first of several answers: SQuAD's ``{text: [...], answer_start: [...]}`` and plain lists have the same meaning."""
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):
        value = value["text"]
    return value[0] if isinstance(value, list) and value else value


def _apart(template: str, prompt: str, completion: str) -> str:
    """The completion with a space before it, unless white space parts the two already."""
    parted = completion[:1].isspace() or (template.endswith("}") and prompt[-1:].isspace())
    return completion if parted else f" {completion}"


# --- a question with choices ---


def _choices(records: Sequence[Record]) -> RecordForm:
    first, reading = _answers_of(records)
    spec = {"name": "choices", "prompt": "{prompt}", "choices": "choices", "answer": "answer"}
    return RecordForm(
        "a question with choices", _is_choice, lambda record: _choice(record, first, reading), spec,
        prompt_format="Question: {question}\nAnswer:",
    )  # fmt: skip


def _is_choice(record: Record) -> bool:
    question, right = columns.first_of(record, columns.QUESTIONS), _right_column(record)
    return question is not None and right is not None and _choice_columns(record) is not None


def _choice_columns(record: Record) -> str | tuple[str, ...] | None:
    listed = columns.first_of(record, columns.CHOICES)
    if listed is not None and isinstance(record[listed], (list, Mapping)) and len(record[listed]) > 1:
        return listed
    return columns.choice_columns(record) or None


def _right_column(record: Record) -> str | None:
    taken = _choice_columns(record)
    listed = {taken} if isinstance(taken, str) else set(taken or ())
    own = columns.by_lower_case({name: value for name, value in record.items() if name not in listed})
    return next((own[name] for name in columns.RIGHT if name in own and not is_missing(record[own[name]])), None)


def _choices_in(record: Record) -> tuple[Choices, Any, str]:
    found, right = _choice_columns(record), _right_column(record)
    question = columns.first_of(record, columns.QUESTIONS)
    if found is None or right is None or question is None:
        lacks = "choices" if found is None else "answer" if right is None else "question"
        raise ALoRAError(f"it has no {lacks}")
    choices = choices_of(record, found if isinstance(found, str) else list(found))
    if not isinstance(found, str):
        choices = Choices(choices.texts, _labels(found), choices.numbers)
    return choices, record[right], right


def _labels(names: Sequence[str]) -> list[str] | None:
    """The letters at the end of the names of columns, by which answers name them."""
    letters = [name.strip()[-1:].upper() for name in names]
    return letters if letters == list(LETTERS[: len(names)]) else None


def _answers_of(records: Sequence[Record]) -> tuple[int, str | None]:
    """How answers name their choices: the number that counting begins with, and the reading (see `answer_index`), None for any.

    The records together say more than one alone: where one answer reaches the number of its choices and none is 0, counting
    begins with 1; and of several ways to read an answer, the one that fits the most records is meant.
    """
    found = []
    for record in records:
        if _is_choice(record):
            try:
                choices, answer, _ = _choices_in(record)
            except ALoRAError:
                continue  # said where the record is converted
            found.append((choices, answer.strip() if isinstance(answer, str) else answer))
    whole = [
        int(answer) for _, answer in found if str(answer).isascii() and str(answer).isdigit() and len(str(answer)) < 9
    ]
    counted = len(whole) == len(found) > 0 and min(whole) >= 1
    if counted and any(number == len(choices.texts) for number, (choices, _) in zip(whole, found, strict=True)):
        labelled = all(
            choices.labels and str(number) in choices.labels for number, (choices, _) in zip(whole, found, strict=True)
        )
        texts = all(str(number) in choices.texts for number, (choices, _) in zip(whole, found, strict=True))
        if not labelled and not texts:
            return 1, "index"
    fits = {
        reading: sum(_reads(choices, answer, reading) for choices, answer in found) for reading in (None, *READINGS)
    }
    best = max(fits.values(), default=0)
    return 0, next(reading for reading, count in fits.items() if count == best)


def _reads(choices: Choices, answer: Any, reading: str | None) -> bool:
    try:
        answer_index(answer, choices, "it", reading)
    except ALoRAError:
        return False
    return True


def _choice(record: Record, first: int, reading: str | None) -> dict[str, Any]:
    choices, answer, right = _choices_in(record)
    question = columns.first_of(record, columns.QUESTIONS)
    assert question is not None  # `_choices_in` looked
    if first:
        answer = int(text_of(answer, f"its field {right!r}")) - first
        if answer < 0:
            raise ALoRAError(f"its answer, the field {right!r}, is 0, and others are counted from 1")
    elif isinstance(answer, str):
        answer = answer.strip()
    index = answer_index(answer, choices, f"its answer, the field {right!r},", reading)
    asked = text_of(field_of(record, question), f"its field {question!r}")
    prompt = f"{_context(record, {question, right})}Question: {asked}\nAnswer:"
    return {"prompt": prompt, "choices": choices.texts, "answer": index}


# --- plain text ---

_TEXT_SPEC = {"name": "text", "prompt": "{prompt}", "completion": "{completion}", "target_delimiter": ""}


def _text_column(record: Record) -> str | None:
    named = columns.first_of(record, columns.TEXTS)
    if named is not None and isinstance(record[named], str):
        return named
    strings = [name for name, value in record.items() if isinstance(value, str)]
    return strings[0] if len(record) == len(strings) == 1 else None


def _text(record: Record) -> dict[str, Any]:
    name = _text_column(record)
    if name is None:
        raise ALoRAError("it has no text")
    return {"text": text_of(record[name], f"its field {name!r}")}
