"""A list of parts that is worked through within a budget of seconds, each one's outcome on disk as soon as it is there.

A part that would not fit by its own estimate is skipped with that reason; one that fails is recorded with its error, and the
next one begins; one that is still going on when the budget is over is cut off, and keeps the figures that it had.
"""

from __future__ import annotations

import json
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DONE, SKIPPED, FAILED, CUT_OFF, STARTED = "done", "skipped", "failed", "cut off", "started"
Figures = dict[str, Any]


class OutOfTime(BaseException):
    """The budget is over while a part is going on; no `Exception`, so that no part takes it for a fault of its own."""


class NotRight(Exception):
    """A part's figures are there, and some are not what they should be."""


class Unsuitable(Exception):
    """A part cannot be run on this machine; the message says why."""


@dataclass(frozen=True)
class Part:
    """One thing to find out.

    Attributes:
        name: what `--parts` and the report call it.
        what: the same in a line.
        seconds: what it takes at most, by an estimate.
        run: puts what it finds into the figures that it is given, one after the other, so that what was found before a fault
            is kept.
    """

    name: str
    what: str
    seconds: float
    run: Callable[[Figures, Budget], None]


class Budget:
    """Seconds that a run may take, and what is left of them.

    Args:
        seconds: in all.
        spent: of them, before this was made.
        clock: seconds that only rise.
    """

    def __init__(self, seconds: float, *, spent: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds - spent

    def left(self) -> float:
        return self._end - self._clock()

    def now(self) -> float:
        return self._clock()

    def fits(self, seconds: float) -> str | None:
        """Why what needs so many seconds is not begun; None if it fits."""
        if seconds <= self.left():
            return None
        return f"needs about {seconds:.0f} s, and {max(self.left(), 0):.0f} s of the budget are left"


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raises `OutOfTime` in the block after so many seconds."""

    def ring(number: int, frame: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Report:
    """The file that all goes to.

    Args:
        path: of the JSON.
        head: what the run is: the machine, the settings, and whatever else is to be said once.
        resume: go on with the file that is there: parts that are done stay as they are, others until they are run again.

    Raises:
        ValueError: the file that is to be gone on with is of another card or of other settings, or is no such report.
    """

    SAME = ("card", "settings")

    def __init__(self, path: Path, head: Mapping[str, Any], *, resume: bool) -> None:
        self.path = path
        self.content: dict[str, Any] = {**head, "parts": {}}
        if resume and path.is_file():
            self.content["parts"] = self._earlier(head)["parts"]

    def _earlier(self, head: Mapping[str, Any]) -> dict[str, Any]:
        try:
            before = json.loads(self.path.read_text())
            other = [key for key in self.SAME if before[key] != head[key]]
            assert isinstance(before["parts"], dict)
        except (ValueError, KeyError, AssertionError) as error:
            raise ValueError(f"{self.path} is no report of this script: give another --output") from error
        if other:
            differs = "; ".join(f"{key} {before[key]!r} there, {head[key]!r} here" for key in other)
            raise ValueError(f"{self.path} cannot be gone on with ({differs}): give another --output")
        return dict(before)

    @property
    def parts(self) -> dict[str, dict[str, Any]]:
        return self.content["parts"]

    def state(self, name: str) -> str | None:
        """What has become of a part; None before anything has."""
        return self.parts[name]["state"] if name in self.parts else None

    def put(self, name: str, state: str, **more: Any) -> None:
        """What has become of a part; on disk when this returns, whole or not at all."""
        self.parts.pop(name, None)
        self.parts[name] = {"state": state, **more}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.partial")
        with partial.open("w") as file:
            file.write(json.dumps(self.content, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.path)


def work_through(
    parts: list[Part],
    report: Report,
    budget: Budget,
    *,
    between: Callable[[], None] = lambda: None,
    stopper: Callable[[float], Any] = alarm,
    say: Callable[[str], None] = print,
) -> int:
    """Run the parts in their order; how many failed.

    Args:
        parts: all that are wanted; those that are done in `report` are passed over.
        report: where it goes to.
        budget: what it may take.
        between: clears up after a part; if it raises, the machine is of no more use, and what is left is skipped.
        stopper: a block that ends by `OutOfTime` after so many seconds.
        say: is told a line of every part.
    """
    failed, unusable = 0, ""
    for part in parts:
        if report.state(part.name) == DONE:
            say(f"{part.name}: kept from an earlier run")
            continue
        reason = unusable or budget.fits(part.seconds)
        if reason:
            if report.state(part.name) not in (FAILED, CUT_OFF):  # of which an earlier run has figures
                report.put(part.name, SKIPPED, what=part.what, reason=reason, seconds=0.0)
            say(f"{part.name}: skipped, {reason}")
            continue
        report.put(part.name, STARTED, what=part.what)
        state, outcome = _outcome(part, budget, stopper)
        report.put(part.name, state, what=part.what, **outcome)
        failed += state == FAILED
        say(f"{part.name}: {state} in {outcome['seconds']:.1f} s{_why(outcome)}")
        try:
            between()
        except Exception as error:  # such as a CUDA error that no later call recovers from
            unusable = (
                f"the machine does not answer any more after {part.name} ({_line(error)}): run it in a new process"
            )
    return failed


def _outcome(part: Part, budget: Budget, stopper: Callable[[float], Any]) -> tuple[str, dict[str, Any]]:
    figures: Figures = {}
    start = budget.now()
    state, more = DONE, {}
    try:
        with stopper(budget.left()):
            part.run(figures, budget)
    except OutOfTime:
        state, more = CUT_OFF, {"reason": "the budget was over before it was finished: what it had found is kept"}
    except Unsuitable as error:
        state, more = SKIPPED, {"reason": str(error)}
    except NotRight as error:
        state, more = FAILED, {"error": str(error)}
    except Exception as error:
        state, more = FAILED, {"error": _line(error), "traceback": traceback.format_exc().splitlines()[-12:]}
    return state, {"seconds": round(budget.now() - start, 3), "estimate": part.seconds, **more, "figures": figures}


def _why(outcome: Mapping[str, Any]) -> str:
    why = outcome.get("error") or outcome.get("reason")
    return f": {why}" if why else ""


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:600]}"
