"""How far many pieces of work have come: what is done, what is under way and what it says of itself, how much time is left."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tqdm.auto import tqdm  # type: ignore[import-untyped]

from alora_trainer.basics.heartbeat import EVERY, bars_shown

logger = logging.getLogger(__name__)

_SHOWN = 3  # pieces under way that a line names


@dataclass(frozen=True)
class _Begun:
    """A piece that is under way: since when, and the file with what it said last."""

    at: float
    told: Path

    def said(self) -> str:
        """Its last line; empty where there is none yet."""
        try:
            return self.told.read_text(encoding="utf-8").strip()
        except OSError:
            # Not written yet, or just removed; a shared file system has more to say, and no progress is worth it.
            return ""


class WorkProgress:
    """Says after each piece, and at least every half minute between, how much is done and how much time is left.

    At a terminal the second is a line that is drawn again and again. The time left goes by what pieces of the same size took.
    Pieces may become known on the way (a board's finals are chosen from its trials). It is a context for each time that is
    worked.

    Args:
        name: of the whole, such as "sweep".
        clock: in seconds.

    Attributes:
        later: how many pieces of size 1 may come beside those that are known.
    """

    def __init__(self, name: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.later = 0
        self._name, self._clock, self._said = name, clock, clock()
        self._left: dict[str, float] = {}
        self._done: set[str] = set()
        self._running: dict[str, _Begun] = {}
        self._seconds = self._size = 0.0
        self._workers = 1
        self._line: tqdm | None = None

    def __enter__(self) -> WorkProgress:
        if bars_shown():
            self._line = tqdm(bar_format="{desc}", leave=False, dynamic_ncols=True, disable=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._line is not None:
            self._line.close()
        self._line = None

    def expect(self, sizes: Mapping[str, float], done: Iterable[str] = ()) -> None:
        """These pieces are known now.

        Args:
            sizes: by name; those that were known before are the same.
            done: the names of those that an earlier call has finished.
        """
        before = len(self._done)
        self._left |= {name: size for name, size in sizes.items() if name not in self._done}
        for name in done:
            self._left.pop(name, None)
            self._done.add(name)
        if len(self._done) > before:
            logger.info(f"{self._name}: {self._counted()} are finished already")

    def begin(self, name: str, told: Path, workers: int) -> None:
        """A piece is begun, one of so many at once; `told` is the file with what it says."""
        self._running[name] = _Begun(self._clock(), told)
        self._workers = workers

    def end(self, name: str, *, failed: bool = False) -> None:
        """A piece is done."""
        begun = self._running.pop(name, None)
        size = self._left.pop(name, 0.0)
        if failed:
            return
        self._done.add(name)
        seconds = self._clock() - begun.at if begun is not None else 0.0
        self._seconds += seconds
        self._size += size
        left = f", {self._time_left()}" if self._left or self.later else ""
        logger.info(f"{self._name}: {self._counted()} done ({name}: {_duration(seconds)}){left}")
        self._said = self._clock()

    def beat(self) -> None:
        """While others are waited for: say it, if it is time."""
        if self._line is not None:
            self._line.set_description_str(self._text(short=True))
        elif self._clock() - self._said >= EVERY:
            self._said = self._clock()
            logger.info(self._text(short=False))

    def _counted(self) -> str:
        whole = len(self._done) + len(self._left) + self.later
        return f"{len(self._done)} of {'at most ' if self.later else ''}{whole} cells"

    def _text(self, *, short: bool) -> str:
        parts = [f"{self._name}: {self._counted()} done", self._time_left()]
        under_way = [self._of_one(name, begun, short=short) for name, begun in list(self._running.items())[:_SHOWN]]
        more = len(self._running) - len(under_way)
        under_way += [f"{more} more"] if more else []
        return f"{', '.join(filter(None, parts))}; under way: {'; '.join(under_way)}"

    def _of_one(self, name: str, begun: _Begun, *, short: bool) -> str:
        said, took = begun.said(), _duration(self._clock() - begun.at)
        if short:  # a terminal's line is cut where it ends: what changes comes first
            return said or took
        return f"{name} ({took}{f': {said}' if said else ''})"

    def _time_left(self) -> str:
        """By what was done in this call; empty as long as that is nothing."""
        if not self._size:
            return ""
        rate, now = self._seconds / self._size, self._clock()
        waiting = sum(self._left.values()) + self.later
        under_way = sum(min(rate * self._left.get(name, 0.0), now - begun.at) for name, begun in self._running.items())
        at_once = max(min(self._workers, len(self._left) + self.later), 1)
        return f"about {_duration((rate * waiting - under_way) / at_once)} left"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
