"""What is known of a setting beside its value, and numbers as settings have them."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import field
from typing import Any, Literal, TypeGuard

# Which of a training's two parts a setting is for.
ReadBy = Literal["recording", "protecting", "both"]


class SettingHelp(str):
    """What a setting is for, and what else is known of it.

    `transformers.HfArgumentParser` gives argparse all that a field's metadata holds, so nothing of ours may stand beside the
    help: it travels on it.

    Attributes:
        read_by: the part that reads the setting.
        choices: the names that it can have (a registry's are looked up when asked); None for a setting that is no name.
    """

    read_by: ReadBy
    choices: Collection[str] | None


def option(default: Any, text: str, read_by: ReadBy, choices: Collection[str] | None = None) -> Any:
    """A field; one that None is the default of takes None beside its choices."""
    described = SettingHelp(text)
    described.read_by, described.choices = read_by, choices
    return field(default=default, metadata={"help": described})


def number_in(value: Any) -> Any:
    """The number that a text says, a whole one as int; all else as it is."""
    if not isinstance(value, str):
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    return int(number) if number.is_integer() else number


def is_finite(value: object) -> TypeGuard[float]:
    """Whether a value is a number, and neither NaN nor infinite."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)
