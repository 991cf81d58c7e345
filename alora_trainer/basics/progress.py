"""How far something long has come: a bar with the time left at a terminal, a line at least every half minute without one."""

from __future__ import annotations

import logging
from collections.abc import Sized
from types import TracebackType

from tqdm.auto import tqdm  # type: ignore[import-untyped]

from alora_trainer.basics.heartbeat import Heartbeat, bars_shown


def length_of(items: object) -> int | None:
    """How many there are, where that is known before they are gone through."""
    try:
        return len(items) if isinstance(items, Sized) else None
    except TypeError:  # a DataLoader over a stream has the method, and no length
        return None


class ShownProgress:
    """A bar or lines about one piece of work; a context, at whose end the bar goes.

    Args:
        what: is going on, such as "measuring importance".
        total: how many units there are; None where that is not known.
        logger: that is told where there is no bar.
        unit: what is counted, in the plural.
        first: how many were done before, by an earlier call.
        quiet: neither bar nor lines.
    """

    def __init__(
        self, what: str, total: int | None, logger: logging.Logger, *, unit: str, first: int = 0, quiet: bool = False
    ) -> None:
        bars = bars_shown() and not quiet
        self._bar = tqdm(
            total=total, desc=what, unit=f" {unit}", initial=first, leave=False, dynamic_ncols=True, disable=not bars
        )
        self._heartbeat = Heartbeat(f"{what}: {unit}", total, logger, quiet=bars or quiet, first=first)

    def __enter__(self) -> ShownProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()

    def advance(self, count: int = 1, detail: str = "") -> None:
        """So many more are done.

        Args:
            count: how many.
            detail: what else is worth knowing, such as "loss 2.31".
        """
        if detail:
            self._bar.set_postfix_str(detail, refresh=False)
        self._bar.update(count)
        self._heartbeat.advance(count, detail)
