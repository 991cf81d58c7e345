"""Answers to choose from, and which of them is right: in the forms in which data sets write both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alora_trainer.data.records import Record, field_of, shown, text_of
from alora_trainer.errors import ALoRAError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# How an answer can name a choice; `answer_is` of a task says which, where more than one would do.
READINGS = ("label", "text", "letter", "index")


@dataclass(frozen=True)
class Choices:
    """The answers of one item.

    Attributes:
        texts: the answers.
        labels: their names in the data set, if it has any.
        numbers: which of the texts are numbers in the record.
    """

    texts: list[str]
    labels: list[str] | None = None
    numbers: frozenset[int] = frozenset()


def choices_of(record: Record, columns: str | Sequence[str]) -> Choices:
    """The choices of a record.

    Args:
        record: the record.
        columns: one column with a list of answers, with ``{text: [...], label: [...]}``, with a list of ``{text, label}``
            or with ``{label: text, ...}``; or several columns with an answer each.

    Raises:
        ALoRAError: it has none, fewer than two, a blank one, or one that is no text; texts and labels do not fit.
    """
    if isinstance(columns, str):
        values, labels = _parts(field_of(record, columns), f"its field {columns!r}")
        names = [f"choice {number} of its field {columns!r}" for number in range(1, len(values) + 1)]
    else:
        values, labels = [field_of(record, column) for column in columns], None
        names = [f"its field {column!r}" for column in columns]
    texts = [text_of(value, name) for value, name in zip(values, names, strict=True)]
    if len(texts) < 2 or not all(text.strip() for text in texts):
        raise ALoRAError(f"its choices are {shown(texts)}: two or more are needed, none of them blank")
    if labels is not None and len(set(labels)) < len(labels):
        raise ALoRAError(f"its choices have the labels {', '.join(labels)}: each must be there once")
    return Choices(texts, labels, frozenset(i for i, value in enumerate(values) if not isinstance(value, str)))


def _parts(value: Any, what: str) -> tuple[list[Any], list[str] | None]:
    """The values and the labels of a column of choices."""
    if isinstance(value, Mapping) and not {"text", "label"} & set(value):
        return list(value.values()), [str(label).strip() for label in value]
    if isinstance(value, Mapping):
        texts, labels = field_of(value, "text"), field_of(value, "label")
        if not _is_list(texts) or not _is_list(labels) or len(texts) != len(labels):
            raise ALoRAError(f"{what} must have as many labels as texts, in two lists 'text' and 'label'")
        return list(texts), [text_of(label, f"a label of {what}").strip() for label in labels]
    if not _is_list(value):
        raise ALoRAError(f"{what} is {shown(value)}, not a list of choices")
    if value and all(isinstance(one, Mapping) for one in value):
        return _parts({key: [field_of(one, key) for one in value] for key in ("text", "label")}, what)
    return list(value), None


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def answer_index(answer: Any, choices: Choices, what: str, reading: str | None = None) -> int:
    """Which choice an answer names.

    Args:
        answer: a label, if the choices have labels; or the choice's text, its letter, or its index from 0 (a number, or its
            digits).
        choices: of the item.
        what: what the answer is, for messages.
        reading: the only way to read it, one of `READINGS`; None takes all, and they must agree, a label's name before all.

    Raises:
        ALoRAError: it names none, or more than one.
    """
    found = _readings(answer, choices, what)
    if reading is not None:
        found = {name: indices for name, indices in found.items() if name == reading}
    elif found["label"] and isinstance(answer, str):
        found = {"label": found["label"]}
    named = {index for indices in found.values() for index in indices}
    if len(named) == 1:
        return named.pop()
    if not named:
        ways = f"no {reading}" if reading else "no label, no index from 0, no letter and no text"
        raise ALoRAError(f"{what} is {shown(answer)}, {ways} of its {len(choices.texts)} choices")
    ways = ", ".join(f"as {name} {choices.texts[index]!r}" for name, indices in found.items() for index in indices)
    names = [name for name, indices in found.items() if indices]
    remedy = f"say in the task how answers are meant, answer_is: {' or '.join(names)}"
    raise ALoRAError(
        f"{what} is {shown(answer)}, which names more than one choice ({ways}): "
        f"{remedy if len(names) > 1 else 'make its choices differ'}"
    )


def _readings(answer: Any, choices: Choices, what: str) -> dict[str, list[int]]:
    """Reading -> the choices that the answer names by it."""
    written = text_of(answer, what)
    short, count = written.strip(), len(choices.texts)
    is_text = isinstance(answer, str)
    found = {
        "label": [i for i, label in enumerate(choices.labels or ()) if label == short],
        # A number is the text of a choice that is a number itself; beside choices in words or in strings, it is an index.
        "text": [i for i, text in enumerate(choices.texts) if text == written and (is_text or i in choices.numbers)],
        "letter": [LETTERS.index(short)] if is_text and len(short) == 1 and short in LETTERS[:count] else [],
    }
    # With numbered labels, digits are a label, whether there is one of that name or not.
    numbered = any(label.isdigit() for label in choices.labels or ())
    whole = short.isascii() and short.isdigit() and (not numbered if is_text else isinstance(answer, int))
    found["index"] = [int(short)] if whole and len(short) < 9 and int(short) < count else []
    return found


def index_of(record: Record, name: str, count: int) -> int:
    """A field that is an index from 0, as a number or its digits; raises ALoRAError for anything else."""
    value = field_of(record, name)
    digits = value.strip() if isinstance(value, str) else ""
    number = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 9 else value
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < count:
        raise ALoRAError(
            f"its {name!r} is {shown(value)}, not a choice from 0 to {count - 1}: leave unlabelled items out"
        )
    return number
