"""A sign of life where nobody sees a progress bar: a line in the log at least every half minute."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable

EVERY = 30.0  # seconds between two lines, at most


def bars_shown() -> bool:
    """Whether progress bars are drawn: at a terminal, unless ``--quiet`` or a worker process has switched them off."""
    if not sys.stderr.isatty() or os.environ.get("TQDM_DISABLE"):
        return False
    # Some terminals of containers and CI have no width, which no bar can be drawn in.
    return os.get_terminal_size(sys.stderr.fileno()).columns > 0


class Heartbeat:
    """Says from time to time how far something long has come, and how long it will still take.

    Where bars are shown, at a terminal, it says nothing.

    Args:
        what: is going on, as in "WHAT 40 of 200".
        total: how many steps there are; None where that is not known.
        logger: that is told.
        every: seconds between two lines.
        clock: in seconds.
        quiet: say nothing; None is quiet where bars are shown.
        first: how many were done before, where `advance` counts.
    """

    def __init__(
        self,
        what: str,
        total: int | None,
        logger: logging.Logger,
        *,
        every: float = EVERY,
        clock: Callable[[], float] = time.monotonic,
        quiet: bool | None = None,
        first: int = 0,
    ) -> None:
        self._what, self._total, self._logger, self._every, self._clock = what, total, logger, every, clock
        self._quiet = bars_shown() if quiet is None else quiet
        self._began = self._said = clock()
        self._first: int | None = None
        self._done = self._before = first

    def advance(self, count: int, detail: str = "") -> None:
        """`count` more are done; `detail` as of `beat`."""
        self._done += count
        self._first = self._before
        self.beat(self._done, detail)

    def beat(self, done: int, detail: str = "") -> None:
        """Say it, if it is time.

        Args:
            done: how many steps are done; what was done before the first call does not count as done in this time.
            detail: what else is worth knowing, such as "loss 2.31".
        """
        now = self._clock()
        if self._first is None:
            self._first = done - 1
        if self._quiet or now - self._said < self._every:
            return
        self._said = now
        of = f" of {self._total}" if self._total is not None else ""
        parts = [f"{self._what} {done}{of}", detail, self._left(done, now)]
        self._logger.info(", ".join(part for part in parts if part))

    def _left(self, done: int, now: float) -> str:
        made = done - (self._first or 0)
        if self._total is None or made <= 0:
            return ""
        return f"{duration((now - self._began) / made * max(self._total - done, 0))} left"


def duration(seconds: float) -> str:
    """Seconds as people write them."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
