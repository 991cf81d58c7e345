"""Dataclasses that are stored as JSON objects: written in one way, and read with every value checked."""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from alora_trainer.errors import ALoRAError

Record = TypeVar("Record", bound="JSONRecord")
_KINDS = {float: "a number", int: "a whole number", str: "a text"}


@dataclass(frozen=True)
class JSONRecord:
    """A dataclass that is a JSON object: its fields are the object's keys.

    A field that is None is left out of the JSON. JSON has no word for a number that is not finite: such a one is written as
    null, and null is read as nan where a number belongs. Numbers keep the kind that they are written in, so that what is read
    and written again is the same file.

    Attributes:
        further: keys that this version does not know, which are kept.
    """

    further: Mapping[str, Any] = field(default_factory=dict, kw_only=True, repr=False)

    def to_json(self) -> dict[str, Any]:
        """The object as plain data, keys in the fields' order."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "further"}
        return {name: _plain(value) for name, value in values.items() if value is not None} | dict(self.further)

    @classmethod
    def from_json(cls: type[Record], value: Any, place: str) -> Record:
        """The record that `to_json` made, or somebody else: nothing in it is trusted.

        Args:
            value: what the JSON parser gave.
            place: the file, and the place in it, for messages.

        Raises:
            ALoRAError: a value is of another type than its field; the message says which and where.
        """
        if not isinstance(value, Mapping):
            raise ALoRAError(f"{place} is {_shown(value)}, not an object: the file is damaged, or is another")
        hints = _field_types(cast(Any, cls))
        known = {name: _read(hints[name], value[name], f"{place}.{name}") for name in hints if name in value}
        missing = [one.name for one in fields(cls) if one.name not in known and _is_required(one)]
        if missing:
            raise ALoRAError(f"{place} has no {missing[0]!r}: the file is damaged, or is another")
        return cls(**known, further={key: item for key, item in value.items() if key not in hints})


def _is_required(one: Any) -> bool:
    return one.default is one.default_factory  # both are dataclasses.MISSING


@cache
def _field_types(cls: Any) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {one.name: hints[one.name] for one in fields(cls) if one.name != "further"}


def _read(hint: Any, value: Any, place: str) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (one for one in get_args(hint) if one is not type(None))
        if value is None and hint is not float:
            return None
    if hint is Any:
        return value
    if hint is float and value is None:
        return math.nan
    if isinstance(hint, type) and issubclass(hint, JSONRecord):
        return hint.from_json(value, place)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Mapping and isinstance(value, Mapping):
        return {str(key): _read(arguments[1], item, f"{place}.{key}") for key, item in value.items()}
    if origin is Sequence and isinstance(value, Sequence) and not isinstance(value, str):
        return [_read(arguments[0], item, f"{place}[{number}]") for number, item in enumerate(value)]
    wanted = (int, float) if hint is float else hint
    if origin is None and isinstance(value, wanted) and not isinstance(value, bool) and not _is_beyond(value, hint):
        return value
    kind = _KINDS.get(hint, "an object" if origin is Mapping else "a list")
    raise ALoRAError(f"{place} is {_shown(value)}, not {kind}: the file is damaged, or is another")


def _is_beyond(value: Any, hint: Any) -> bool:
    """Whether a whole number that stands where a number belongs is larger than any of these."""
    return hint is float and isinstance(value, int) and abs(value) > sys.float_info.max


def _plain(value: Any) -> Any:
    if isinstance(value, JSONRecord):
        return value.to_json()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 42 else f"{text[:39]}..."
