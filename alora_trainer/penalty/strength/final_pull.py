"""The end of a training with a budget: what is still above it is pulled back."""

from __future__ import annotations

import logging
from collections.abc import Callable

from alora_trainer.penalty.quadratic import QuadraticPenalty
from alora_trainer.penalty.strength.budget import Rise

logger = logging.getLogger(__name__)

# The pull is looked for among these strengths (learning rate times lambda), and then between two neighbours.
_WEAKEST, _STRONGEST, _FACTOR = 1e-6, 1e6, 10.0
_HALVINGS = 4


class FinalPull:
    """The weakest implicit step on the penalty that brings the probe within the budget.

    Steering lambda keeps the rise near the budget during the training; it cannot promise that the last step ends below it.
    One more decoupled update can: it moves the weights towards their anchors, along the penalty, so that what mattered
    least moves last. Its strength is found by trying, from the weights as the training left them.

    Args:
        penalty: on the weights to pull.
        budget: the largest rise that is allowed.
    """

    def __init__(self, penalty: QuadraticPenalty, budget: float) -> None:
        self._penalty = penalty
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
        strength, found = self._search(measure)
        if found.bound > self._budget:
            logger.warning(
                f"the budget is not kept: general loss rose by {found.value:.2%}, for a budget of {self._budget:.2%}, even "
                "with the held weights pulled back: something else moved what the probe needs (weights that are free, or "
                "important ones that the map does not know)"
            )
        return {"final_pull": strength, "probe_rise": found.value, "probe_rise_error": found.error}

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

    def _try(self, strength: float, measure: Callable[[], Rise]) -> Rise:
        for p, left in zip(self._factors, self._left, strict=True):
            p.data.copy_(left)
        self._penalty.lam = strength
        self._penalty.pull({id(p): 1.0 for p in self._factors if p.requires_grad})
        return measure()
