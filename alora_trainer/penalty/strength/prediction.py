"""The rise of general loss that a curvature map predicts, and by how much a probe has found it to be off."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from alora_trainer.errors import ALoRAError
from alora_trainer.penalty.strength.budget import STEPS, Rise

# A measured rise says how far off the prediction is once it is so many of its own standard errors.
_CLEAR = 2.0


class RisePrediction:
    """``1/2 sum_l R_l``: to second order and layer by layer, by how many nats a token KL(p_base || p) rises on general text.

    It is counted from where the penalty pulls to, by the map's own numbers (no layer weight, no normalisation in them). What is
    between the layers is left out of it, and so is all above the second order, so that a whole adapter's rise is larger. One
    factor, of a measured rise over the predicted one, makes up for that.

    Attributes:
        start: the prediction at the start of the training: what is measured is a rise from there.
        factor: measured over predicted rise, of the last probe that showed one; None before.
    """

    def __init__(self) -> None:
        self.start = 0.0
        self.factor: float | None = None
        # What steers: the bound of the last probe's relative rise, over the prediction of the step before it.
        self._scale: float | None = None
        self._recent: deque[float] = deque(maxlen=STEPS + 1)

    def add(self, predicted: float) -> None:
        """Take in the prediction, in nats a token, of an optimizer step."""
        self._recent.append(predicted)

    def calibrate(self, predicted: float, rise: Rise, start_loss: float) -> dict[str, float]:
        """Take in what a probe found; what to log of it.

        Args:
            predicted: in nats a token, at the very weights that were probed.
            rise: as the probe measured it.
            start_loss: of the probe at the start of the training, in nats a token, which `rise` is a share of.
        """
        moved = predicted - self.start
        if moved > 0 and rise.value > _CLEAR * rise.error:
            self.factor = rise.value * start_loss / moved
        # A step's prediction is of the weights before its pull, or before the step: what steers is calibrated on the same.
        stepped = (self._recent[-1] if self._recent else predicted) - self.start
        if stepped > 0 and rise.bound > 0:
            self._scale = rise.bound / stepped
        found = {"predicted_rise": predicted, "measured_rise": rise.value * start_loss}
        return found if self.factor is None else found | {"calibration": self.factor}

    def calibrated(self, predicted: float) -> float | None:
        """What the prediction becomes by `factor`; None before there is one."""
        return None if self.factor is None else self.factor * predicted

    @property
    def bound(self) -> tuple[float, float] | None:
        """What the relative rise is believed to stay below after the last step, and how much that has changed over the last
        `STEPS` steps; None before a probe has shown a rise, or where no step has predicted one."""
        if self._scale is None or not self._recent:
            return None
        first, last = self._recent[0], self._recent[-1]
        return self._scale * (last - self.start), self._scale * (last - first)

    def state_dict(self) -> dict[str, Any]:
        return {"start": self.start, "factor": self.factor, "scale": self._scale, "recent": list(self._recent)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave.

        Raises:
            ALoRAError: the state is damaged.
        """
        try:
            self.start = float(state["start"])
            self.factor, self._scale = (None if state[k] is None else float(state[k]) for k in ("factor", "scale"))
            self._recent = deque(map(float, state["recent"]), maxlen=STEPS + 1)
        except (KeyError, TypeError, ValueError) as error:
            raise ALoRAError(
                f"the checkpoint's state of the predicted rise is damaged ({error}): start again"
            ) from error
        if not all(math.isfinite(number) for number in (self.start, *self._recent)):
            raise ALoRAError("the checkpoint's state of the predicted rise is not finite: start again")
