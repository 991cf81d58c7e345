"""The end of a training with a budget: what is still above it is pulled back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from alora_trainer.penalty.quadratic import QuadraticPenalty
from alora_trainer.penalty.strength.budget import Rise

Found = TypeVar("Found")

logger = logging.getLogger(__name__)

# The pull is looked for among these strengths (learning rate times lambda), and then between two neighbours.
_WEAKEST, _STRONGEST, _FACTOR = 1e-6, 1e6, 10.0
_HALVINGS = 4
# By a prediction, which costs no probe: so many halvings of the whole range, and so many probes that set it right.
_PREDICTED_HALVINGS = 24
_CORRECTIONS = 4
# The share of the budget that is then aimed at, and the least that a pull may leave for being weak enough.
_AIM, _USED = 0.95, 0.9


class FinalPull:
    """The weakest implicit step on the penalty that brings the probe within the budget.

    Steering lambda keeps the rise near the budget during the training; it cannot promise that the last step ends below it.
    One more decoupled update can: it moves the weights towards their anchors, along the penalty, so that what mattered
    least moves last. Its strength is found by trying, from the weights as the training left them.

    Args:
        penalty: on the weights to pull.
        budget: the largest rise that is allowed.
        predict: something that the rise is about proportional to, at the weights as they are, and that takes no probe: the
            strength is then found by it, and probes only set it right. None tries strengths by the probe alone.
    """

    def __init__(self, penalty: QuadraticPenalty, budget: float, predict: Callable[[], float] | None = None) -> None:
        self._penalty = penalty
        self._predict = predict
        self._budget = budget
        self._factors = list({p: None for weight in penalty.weights for p in weight.parameters})
        self._left = [p.detach().clone() for p in self._factors]

    def keep_budget(self, rise: Rise, measure: Callable[[], Rise]) -> dict[str, float]:
        """Pull if `rise`, of the weights as they are, is above the budget; what to log.

        Args:
            rise: at the weights as they are.
            measure: evaluates the probe at the weights as they then are.
        """
        if rise.bound <= self._budget:
            return {"final_pull": 0.0}
        strength, found = self._search_by_prediction(rise, measure) or self._search(measure)
        if found.bound > self._budget:
            logger.warning(
                f"the budget is not kept: general loss rose by {found.value:.2%}, for a budget of {self._budget:.2%}, even "
                "with the held weights pulled back: something else moved what the probe needs (weights that are free, or "
                "important ones that the map does not know)"
            )
        return {"final_pull": strength, "probe_rise": found.value, "probe_rise_error": found.error}

    def _search_by_prediction(self, rise: Rise, measure: Callable[[], Rise]) -> tuple[float, Rise] | None:
        """The strength and the rise that it leaves; None if no prediction leads within the budget."""
        predict, best, bound = self._predict, None, rise.bound
        for _ in range(_CORRECTIONS if predict is not None else 0):
            assert predict is not None
            predicted = predict()  # where `bound` was measured
            if predicted <= 0 or bound <= 0:
                break
            strength = self._weakest(predict, _AIM * self._budget * predicted / bound)
            if strength is None:
                break
            found = self._try(strength, measure)
            bound = found.bound
            if bound <= self._budget and (best is None or strength < best[0]):
                best = strength, found
            if _USED * self._budget <= bound <= self._budget:
                break
        if best is not None and best[1].bound != bound:
            return best[0], self._try(best[0], measure)
        return best

    def _weakest(self, predict: Callable[[], float], goal: float) -> float | None:
        """The weakest strength after which what is predicted is `goal` at most; None if none is strong enough."""
        if self._try(_STRONGEST, predict) > goal:
            return None
        low, high = _WEAKEST, _STRONGEST
        for _ in range(_PREDICTED_HALVINGS):
            middle = (low * high) ** 0.5
            low, high = (middle, high) if self._try(middle, predict) > goal else (low, middle)
        return high

    def _search(self, measure: Callable[[], Rise]) -> tuple[float, Rise]:
        low, high = _WEAKEST / _FACTOR, _WEAKEST
        while (found := self._try(high, measure)).bound > self._budget and high < _STRONGEST:
            low, high = high, high * _FACTOR
        if found.bound > self._budget:
            return high, found
        for _ in range(_HALVINGS):
            middle = (low * high) ** 0.5
            if self._try(middle, measure).bound > self._budget:
                low = middle
            else:
                high = middle
        return high, self._try(high, measure)

    def _try(self, strength: float, measure: Callable[[], Found]) -> Found:
        for p, left in zip(self._factors, self._left, strict=True):
            p.data.copy_(left)
        self._penalty.lam = strength
        self._penalty.pull({id(p): 1.0 for p in self._factors if p.requires_grad})
        return measure()
