"""What comes from the environment is used, and not written: files, messages and digests have it by reference.

A recipe says ``${NAME}`` for what belongs to a machine or is secret. The value goes where it is needed; a file that repeats the
recipe has ``${NAME}`` again, and what a result depends on has a digest of it. Secrets are no settings at all.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

_SECRET = re.compile(
    r"(?:^|[_.-])(?:token|secret|password|passwd|passphrase|api_?key|access_?key|secret_?key|credentials?)$",
    re.IGNORECASE,
)
_NO_SECRET = re.compile(r"(?:pad|eos|bos|unk|mask|sep|cls|image|prefix)_token$", re.IGNORECASE)
# Shorter ones are found in any text.
_SHORTEST, _SHORTEST_SECRET = 8, 4


def is_secret_name(name: str) -> bool:
    """Whether a field or a variable of this name holds a secret: ``hub_token``, ``tune.hub_token``, ``WANDB_API_KEY``."""
    return bool(_SECRET.search(name)) and not _NO_SECRET.search(name)


class FromEnvironment(str):
    """A text with values of environment variables in it.

    It is the value wherever a text is used; its ``repr``, which messages have, is what was written.

    Attributes:
        written: with ``${NAME}`` in the place of the values.
        secret: whether it must not even be told by a digest.
    """

    written: str
    secret: bool

    def __new__(cls, value: str, written: str, secret: bool = False) -> FromEnvironment:
        made = super().__new__(cls, value)
        made.written, made.secret = written, secret
        return made

    def __getnewargs__(self) -> tuple[str, str, bool]:  # type: ignore[override]
        return str(self), self.written, self.secret

    def __repr__(self) -> str:
        return repr(self.written)

    def with_value(self, value: str, written: str) -> FromEnvironment:
        """The same source of another value, such as the whole of a relative path."""
        return FromEnvironment(value, written, self.secret)


def disclosed(value: Any) -> Any:
    """Plain data with what comes from the environment as it was written, for files that people read."""
    if isinstance(value, FromEnvironment):
        return value.written
    if isinstance(value, Mapping):
        return {key: disclosed(item) for key, item in value.items()}
    return [disclosed(item) for item in value] if isinstance(value, (list, tuple)) else value


def as_settings(value: Any) -> Any:
    """Plain data for what a result depends on: values from the environment by a digest, and without secrets."""
    if isinstance(value, FromEnvironment):
        return f"{value.written} (sha256 {hashlib.sha256(value.encode()).hexdigest()[:16]})"
    if isinstance(value, Mapping):
        return {key: as_settings(item) for key, item in value.items() if not _is_secret(item)}
    return [as_settings(item) for item in value if not _is_secret(item)] if isinstance(value, (list, tuple)) else value


def _is_secret(value: Any) -> bool:
    return isinstance(value, FromEnvironment) and value.secret


def without_secrets(value: Any) -> Any:
    """Plain data that an earlier version may have written a secret into: ``<HUB_TOKEN>`` in the place of each."""
    if isinstance(value, Mapping):
        return {key: _masked(str(key), item) for key, item in value.items()}
    return [without_secrets(item) for item in value] if isinstance(value, (list, tuple)) else value


def _masked(key: str, value: Any) -> Any:
    if is_secret_name(key) and isinstance(value, str) and not value.startswith(("${", "<")):
        return f"<{key.rpartition('.')[2].upper()}>"
    return without_secrets(value)


class _Known:
    """The values that recipes of this process have taken from the environment, for messages that were made of them."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def add(self, name: str, value: str, secret: bool) -> None:
        if len(value) >= (_SHORTEST_SECRET if secret else _SHORTEST):
            self._names[value] = name

    def hidden(self, text: str) -> str:
        for value in sorted(self._names, key=len, reverse=True):
            text = text.replace(value, f"${{{self._names[value]}}}")
        return text


_known = _Known()


def note(name: str, value: str, *, secret: bool) -> None:
    """A recipe has taken this value from the environment variable `name`."""
    _known.add(name, value, secret)


def redacted(text: str) -> str:
    """A message for the terminal or a log, with ``${NAME}`` in the place of each value that a recipe took from there."""
    return _known.hidden(text)
