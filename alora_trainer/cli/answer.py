"""What a command ends with: for people, and the same as data for machines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """A command's result.

    Attributes:
        text: for people.
        data: plain data, which ``--json`` prints alone.
        status: the exit status.
    """

    text: str
    data: Any
    status: int = 0
