"""`StartFrom`: the three places where a protected training of an adapter can start."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from enum import Enum
from typing import Any

from alora_trainer.basics.output import OlderSpelling
from alora_trainer.errors import ALoRAError


class StartFrom(str, Enum):
    """What the training of an adapter starts from, where a map was recorded with an adapter of its own.

    RECORDED: the recorded adapter itself, on the base model (the paper's stage B).
    MERGED: a new adapter, on the base model with the recorded adapter merged into it.
    BARE: a new adapter, on the base model as it was.
    """

    RECORDED = "recorded"
    MERGED = "merged"
    BARE = "bare"

    @classmethod
    def parse(cls, start: object, fresh_base: object = None) -> StartFrom:
        """The member that a setting means, in today's spelling or in the older one, which had two settings for it.

        Args:
            start: a member or its value; or, with an `OlderSpelling` warning, "continue" or "fresh".
            fresh_base: of the older spelling, what a fresh adapter is put on: "merged" (the same as None) or "bare".

        Raises:
            ALoRAError: there is no such start; the message has all of them.
        """
        if fresh_base is None and start not in _OLDER_STARTS:
            for member in cls:
                if start == member.value:
                    return member
            names = ", ".join(repr(member.value) for member in cls)
            raise ALoRAError(f"start={start!r} is unknown: use one of {names}")
        meant = _older_spelling(start, fresh_base)
        given = (
            f"start={_text(start)}" if fresh_base is None else f"start={_text(start)} with fresh_base={fresh_base!r}"
        )
        warnings.warn(f"{given} is an older spelling: say start={meant.value!r}", OlderSpelling, stacklevel=4)
        return meant


_OLDER_STARTS = ("continue", "fresh")


def _older_spelling(start: object, fresh_base: object) -> StartFrom:
    if fresh_base not in (None, "merged", "bare"):
        raise ALoRAError(f"fresh_base={fresh_base!r} is unknown, and an older spelling: say start='merged' or 'bare'")
    if start == "fresh":
        return StartFrom.BARE if fresh_base == "bare" else StartFrom.MERGED
    # "recorded" may be today's default, where only fresh_base was given: it had no effect without "fresh".
    if start in ("continue", StartFrom.RECORDED):
        return StartFrom.RECORDED
    raise ALoRAError(f"start={_text(start)} says all that fresh_base={fresh_base!r} could say: leave fresh_base out")


def _text(start: object) -> str:
    return repr(start.value if isinstance(start, StartFrom) else start)


def with_start(
    settings: Mapping[str, Any], over: Mapping[str, Any] | None = None, *, quiet: bool = False
) -> dict[str, Any]:
    """`settings` with their start in today's spelling, if it was in the older one; see `StartFrom.parse`.

    Args:
        settings: some of a configuration's, by name.
        over: the settings that these are laid over, in either spelling.
        quiet: without a warning, for what an earlier version wrote and nobody can spell anew.

    Raises:
        ALoRAError: there is no such start.
    """
    if "fresh_base" not in settings and settings.get("start") not in _OLDER_STARTS:
        return dict(settings)
    before = over or {}
    start = settings.get("start", before.get("start")) or StartFrom.RECORDED.value
    fresh_base = settings.get("fresh_base", before.get("fresh_base"))
    kept = {key: value for key, value in settings.items() if key != "fresh_base"}
    meant = _older_spelling(start, fresh_base) if quiet else StartFrom.parse(start, fresh_base)
    return kept | {"start": meant.value}
