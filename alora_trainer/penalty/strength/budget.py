"""Lambda by budget: dual ascent on "general loss rises by this share at most", from a probe evaluated now and then."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alora_trainer.errors import ALoRAError

# One-sided 90 % of a normal distribution: the budget is meant for general text, of which the probe is a sample.
CONFIDENCE = 1.28
# Lambda stays within this factor of where it started, either way.
RANGE = 1e6
# The step in log(lambda) is so many times the log of what the rise is too large or too small by. On a small model the rise went
# with lambda to the power of about -0.4 (a constant force against a spring would give -1 or -2): these gains do not overshoot.
_UP, _DOWN = 1.5, 1.0
# Most that one probe multiplies lambda by, and divides it by.
_LARGEST_UP, _LARGEST_DOWN = 4.0, 2.0
# The optimizer steps between two probes that all of this was found with; a step that moves lambda by itself has its share.
STEPS = 10
# Share of a change since the last probe that is expected to go on until the next one, growing and shrinking.
_GROWING, _SHRINKING = 1.0, 0.5
# Share of the budget that is aimed at: what is left is for the noise of training between two probes.
_AIM = 0.9


@dataclass(frozen=True)
class Rise:
    """How much the probe's loss rose over its value at the start, as a share of it, with its standard error as an estimate
    of the same for all text that the probe is a sample of."""

    value: float
    error: float

    @property
    def bound(self) -> float:
        """What the rise is believed to stay below, with `CONFIDENCE`."""
        return self.value + CONFIDENCE * self.error


class BudgetController:
    """A multiplier that is raised while the rise is above the budget and lowered while it is below (dual ascent).

    The step is in the logarithm of lambda, proportional to the logarithm of expected rise over budget, and bounded; up faster
    than down, since what was forgotten comes back more slowly than it goes. The expected rise is that of the next probe, if
    the change since the last one goes on: lambda is raised before the budget is reached, and no longer when the rise
    is on its way back.

    Args:
        budget: the largest rise that is allowed, such as 0.01.
        lam: where lambda starts.
    """

    def __init__(self, budget: float, lam: float) -> None:
        self.budget = budget
        self._start = self._log = math.log(lam)
        self._last = 0.0

    @property
    def lam(self) -> float:
        return math.exp(self._log)

    def update(self, rise: Rise) -> float:
        """Lambda after a probe."""
        change, self._last = rise.bound - self._last, rise.bound
        return self._move(rise.bound, change, 1.0)

    def follow(self, bound: float, change: float) -> float:
        """Lambda after an optimizer step whose rise is known without a probe: a tenth of what a probe would do.

        Args:
            bound: what the rise is believed to stay below, as of `Rise`.
            change: of it over the last `STEPS` steps.
        """
        return self._move(bound, change, 1 / STEPS)

    def _move(self, bound: float, change: float, share: float) -> float:
        expected = bound + change * (_GROWING if change > 0 else _SHRINKING)
        # No logarithm of what is not positive: far below the budget is far enough.
        excess = math.log(max(expected / (_AIM * self.budget), 1e-3))
        step = min(max(excess * (_UP if excess > 0 else _DOWN), -math.log(_LARGEST_DOWN)), math.log(_LARGEST_UP))
        limit = math.log(RANGE)
        self._log = min(max(self._log + step * share, self._start - limit), self._start + limit)
        return self.lam

    def state_dict(self) -> dict[str, Any]:
        return {"start": self._start, "log": self._log, "last": self._last}

    @classmethod
    def from_state(cls, budget: float, state: Mapping[str, Any]) -> BudgetController:
        """The controller that `state_dict` was taken from.

        Raises:
            ALoRAError: the state is damaged.
        """
        controller = cls(budget, 1.0)
        try:
            controller._start, controller._log, controller._last = (float(state[k]) for k in ("start", "log", "last"))
        except (KeyError, TypeError, ValueError) as error:
            raise ALoRAError(f"the checkpoint's state of the budget is damaged ({error}): start again") from error
        return controller
