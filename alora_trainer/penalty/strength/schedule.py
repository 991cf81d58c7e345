"""Lambda over a training: given or found, and multiplied by a schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from alora_trainer.errors import ALoRAError
from alora_trainer.weights.trained_weight import Matrices, TrainedWeight, whole

# `lam: auto` lets the weights move freely for this share of the training, then balances the two gradients where they are.
FREE_SHARE = 0.1


def free_steps(steps: int) -> int:
    """Optimizer steps of `steps` before lambda is first found."""
    return max(1, math.ceil(FREE_SHARE * steps))


def look_is_due(completed: int, steps: int, every: int, *, calibrates: bool) -> bool:
    """Whether general text is looked at after so many of `steps` optimizer steps.

    Args:
        every: as often as this (`probe_steps`).
        calibrates: a look calibrates what steers lambda: there is one where lambda is first found, too.
    """
    return completed == steps or completed % every == 0 or (calibrates and completed == free_steps(steps))


def looks(steps: int, every: int, *, calibrates: bool) -> int:
    """How often a training of so many steps looks at general text: before the first step, and whenever it is due.

    What keeps a budget at the very end looks further times, if it was not kept by then.
    """
    return 1 + sum(look_is_due(step, steps, every, calibrates=calibrates) for step in range(1, steps + 1))


def schedule_factor(schedule: str, end_factor: float, step: int, steps: int) -> float:
    """What lambda is multiplied by at optimizer step `step` (from 0) of `steps`: 1 at the first, `end_factor` at the last."""
    if schedule == "constant":
        return 1.0
    progress = min(step / max(steps - 1, 1), 1.0)
    if schedule == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    return 1.0 + (end_factor - 1.0) * progress


class GradientBalance:
    """`lam: auto`: the lambda at which penalty and data pull equally, where the free weights are after a while.

    At theta* the penalty has no gradient, so there is nothing to compare at the start. The weights move freely for the first
    `FREE_SHARE` of the training; then lambda is ``rms(|g_data|) / |g_penalty|`` over all factors, with the data's gradient
    norms of those steps and the gradient of the penalty (for lambda 1) at their end. The drift that was reached then is
    where both forces are in balance: about as far as the weights will go.

    For the decoupled penalty, whose step is learning rate times lambda times gradient whatever the optimizer does, the
    data's side is what the optimizer really did: its movement divided by the learning rate. Under plain SGD both are one.

    Args:
        weights: the held weights.
        steps: optimizer steps of the whole training.
        by_movement: measure the movement (for the decoupled penalty) rather than the gradient.
    """

    def __init__(self, weights: Sequence[TrainedWeight], steps: int, *, by_movement: bool) -> None:
        self._weights = list(weights)
        self._by_movement = by_movement
        self._before: list[torch.Tensor] | None = None
        self._squares = 0.0
        self._count = 0
        self.free_steps = free_steps(steps)
        self.lam: float | None = None

    def before_step(self, gradients: Mapping[str, Matrices]) -> None:
        """Take in a step that is about to be made.

        Args:
            gradients: the data loss's gradients of A and B by weight name: unclipped, unscaled.
        """
        if self.lam is not None:
            return
        if self._by_movement:
            self._before = [p.detach().clone() for p in self._factors()]
            return
        square = sum(float(g.double().square().sum()) for weight in self._weights for g in gradients[weight.name])
        if math.isfinite(square):  # infinite gradients are an fp16 loss scaler's ordinary business: that step is none
            self._squares += square
            self._count += 1

    def after_step(self, learning_rates: Mapping[int, float], *, skipped: bool) -> None:
        """Take in the step that has been made, at these learning rates by ``id(parameter)``."""
        before, self._before = self._before, None
        if before is None or skipped:
            return
        square = 0.0
        for old, p in zip(before, self._factors(), strict=True):
            rate = learning_rates.get(id(p), 0.0)
            if rate > 0:
                square += float(whole((p.detach().double() - old.double()).square().sum())) / rate**2
        self._squares += square
        self._count += 1

    def settle(self, penalty_gradients: Mapping[str, Matrices]) -> float | None:
        """Lambda from the penalty's gradients for lambda 1 at the present weights; None while these have not moved."""
        square = sum(float(g.double().square().sum()) for pair in penalty_gradients.values() for g in pair)
        if square > 0 and self._squares > 0:
            self.lam = math.sqrt(self._squares / self._count / square)
        return self.lam

    def _factors(self) -> list[torch.nn.Parameter]:
        return list({p: None for weight in self._weights for p in weight.parameters})

    def state_dict(self) -> dict[str, Any]:
        return {"lam": self.lam, "squares": self._squares, "count": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        try:
            self.lam, self._squares, self._count = state["lam"], float(state["squares"]), int(state["count"])
        except (KeyError, TypeError, ValueError) as error:
            raise ALoRAError(f"the checkpoint's state of lam='auto' is damaged ({error}): start again") from error
