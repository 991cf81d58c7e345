"""A record as it was written, with where it stands; and the one way in which a value of it becomes text."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from alora_trainer.errors import ALoRAError

Record: TypeAlias = Mapping[str, Any]

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


class Row(dict[str, Any]):
    """A record of a source: its own fields, whatever others have, and ``where`` it stands (``line 3 of /data/a.jsonl``)."""

    def __init__(self, fields: Mapping[str, Any], where: str) -> None:
        super().__init__(fields)
        self.where = where


def place(record: Record, number: int) -> str:
    """Where a record stands: in its file, or the `number`-th of a list that was given."""
    return record.where if isinstance(record, Row) else f"item {number}"


class Unreadable:
    """Stands for a value that its file holds but that cannot be made out; refused where it is used."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __repr__(self) -> str:
        return f"a value that cannot be read ({self.reason})"


def shown(value: object) -> str:
    """A value for a message, as JSON calls it, never long and never a control character."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "infinite"
    if isinstance(value, Unreadable):
        return repr(value)
    return _SHORT.repr(value) if isinstance(value, str) else f"{_SHORT.repr(value)} (type {type(value).__name__})"


def listed(names: Iterable[object]) -> str:
    """Names of fields for a message: the first twenty, without control characters."""
    written = [repr(name)[1:-1] if isinstance(name, str) else repr(name) for name in names]
    return ", ".join(written[:20]) + (f" and {len(written) - 20} more" if len(written) > 20 else "")


def is_missing(value: object) -> bool:
    """Whether a field's value says that there is none: null, or NaN, which tables write in its place."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def check_characters(text: str, what: str) -> str:
    """`text`, if all of it can be written as UTF-8; else ALoRAError with the place in it and what to do.

    Files are read with ``errors="surrogateescape"``: bytes that are not UTF-8 arrive here as lone surrogates.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code, before = ord(text[error.start]), text[: error.start]
        place = f"line {before.count(chr(10)) + 1}, character {error.start - before.rfind(chr(10))} of it"
        if 0xDC80 <= code <= 0xDCFF:
            raise ALoRAError(
                f"{what} has the byte 0x{code - 0xDC00:02X} ({place}), which is not UTF-8: convert the file, for example with "
                "iconv -f WINDOWS-1252 -t UTF-8"
            ) from error
        raise ALoRAError(
            f"{what} has half of a surrogate pair, \\u{code:04x} ({place}), which is no character: write the whole character"
        ) from error
    return text


def text_of(value: object, what: str) -> str:
    """The text of a field's value: a string as it is, a whole or finite number as JSON spells it.

    Args:
        value: of the field.
        what: what it is, for messages, such as ``its field 'question'``.

    Raises:
        ALoRAError: it is null, NaN, true, false, a list, an object or of any other type; or a string that is no text.
    """
    if isinstance(value, str):
        return check_characters(value, what)
    if isinstance(value, int) and not isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float) and math.isfinite(value):
        return json.dumps(value)
    raise ALoRAError(f"{what} is {shown(value)}, not text: correct it, or leave the item out")


def field_of(record: Record, name: str) -> Any:
    """The value of a field, whatever it is; ALoRAError if the record has no such field."""
    if name not in record:
        raise ALoRAError(f"it has no field {name!r} (its fields are {listed(record)})")
    return record[name]


def string_field(record: Record, name: str) -> str:
    """A field that must be a string; raises ALoRAError for anything else."""
    value = field_of(record, name)
    if not isinstance(value, str):
        raise ALoRAError(f"its field {name!r} is {shown(value)}, not a string")
    return check_characters(value, f"its field {name!r}")
