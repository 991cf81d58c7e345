"""The last step of a training with a promise: its adapter is scaled until the promise can be made, on text kept for that."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from alora_trainer.penalty.strength.probe import Probe
from alora_trainer.penalty.strength.promise import (
    CONFIDENCE,
    LEAST_SEQUENCES,
    Bound,
    Tested,
    chosen_scale,
    in_fixed_order,
    order_around,
    promised,
)
from alora_trainer.weights.shrinking import Shrinking

logger = logging.getLogger(__name__)

MEASURE = "rise of the mean negative log-likelihood a token over the base model's, as a share of it"


@dataclass(frozen=True)
class Promise:
    """What could be promised of an adapter, and by what.

    Attributes:
        budget: the largest rise that was asked for.
        kept: whether it is promised.
        scale: of the adapter's movement as it is left.
        rise: on the text of the promise, at that scale.
        tokens: that were predicted in the text of the promise.
        tested: every scale that was tested on it, in the order of the tests.
        chosen: the scale that other text chose, and what that says of it.
        needed: about how many sequences of the kind could promise the chosen scale; None where it is promised, or none could.
        kinds: the rise by kind of text, where there are several.
        base_loss: of the base model on the text of the promise, nats a token.
        before, after: the summed losses of its sequences, of the base model and at that scale, nats: all that the rise is of.
    """

    budget: float
    kept: bool
    scale: float
    rise: Bound
    tokens: int
    tested: list[Tested]
    chosen: Tested
    needed: int | None
    base_loss: float
    before: list[float]
    after: list[float]
    kinds: dict[str, Bound] = field(default_factory=dict)
    validation: list[tuple[float, float]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {"measure": MEASURE, "confidence": CONFIDENCE, **asdict(self)}

    def sentence(self) -> str:
        """The promise, or why there is none, in one sentence."""
        found = self.rise
        rests = f"{found.sequences} passages ({self.tokens:,} tokens) that no other part saw"
        figure = f"general cross-entropy rose by {found.rise:.2%} of the base's {self.base_loss:.3f} nats a token"
        limit = f"with {CONFIDENCE:.0%} confidence by {found.upper:.2%} at most"
        if self.kept:
            return f"KEPT: {figure}, {limit}, for a budget of {self.budget:.2%}; on {rests}"
        return f"NOT KEPT: {figure}, {limit}, for a budget of {self.budget:.2%}; on {rests}; {self._remedy()}"

    def _remedy(self) -> str:
        each = self.tokens / max(self.rise.sequences, 1)
        if self.rise.sequences < LEAST_SEQUENCES:
            return f"a promise needs {LEAST_SEQUENCES} passages at least: give more general text"
        if self.needed is not None:
            return f"about {self.needed} passages ({self.needed * each:,.0f} tokens) of such text could promise it: give more"
        return "more text would not help: allow a larger rise, or train less"


# Scales that may be better than what was trained, where the training left some of the budget: as far as validation gets better.
_BEYOND = (1.0, 1.25, 1.5, 2.0)


def scale_to_promise(
    model: nn.Module,
    accelerator: Any,
    *,
    choose: Probe,
    promise: Probe,
    budget: float,
    kinds: list[str] | None = None,
    validation: Probe | None = None,
) -> Promise:
    """Scale the model's adapter to the largest share of its movement whose rise can be promised.

    `choose` finds the scale (`chosen_scale`); the promise is then tested on `promise`, at scales around that in a fixed order,
    of which any that passed may be taken without spoiling the confidence (`in_fixed_order`): the last one, which is the
    largest. Where none passes, the adapter is left at the scale that was chosen.

    With `validation` scales above 1 are looked at, too, as long as its loss falls, and of those that passed the one is taken
    whose validation loss is the lowest. It has no general text in it, so that the promise does not rest on it.

    Args:
        model: with one trainable LoRA adapter on the base model that the rise is counted from.
        accelerator: as the trainer has it.
        choose: text that the training did not see.
        promise: text that neither the training nor `choose` has.
        budget: the largest rise, as a share.
        kinds: of the sequences of `promise`.
        validation: items of what is learned (``labels`` at the answers), that the training did not see.

    Raises:
        ALoRAError: see `Shrinking`.
    """
    at = _Scaled(model, accelerator)
    largest = 1.0 if validation is None else _lowest(_BEYOND, lambda one: at.loss(validation, one))
    scale = chosen_scale(lambda one: at.bound(choose, one), budget, largest)
    tested = in_fixed_order(order_around(scale, largest), lambda one: at.bound(promise, one), budget)
    found = promised(tested, budget)
    if found is not None and validation is not None:
        found = min((one for one in tested if one.bound.keeps(budget)), key=lambda one: at.loss(validation, one.scale))
    last = found or Tested(scale, at.bound(promise, scale))
    before, after = at.losses(promise, 0.0), at.losses(promise, last.scale)
    at.set(last.scale)
    logger.info(f"the adapter is taken {last.scale:.3g} times, by what the promise allows (1 is as it was trained)")
    return Promise(
        budget=budget,
        kept=found is not None,
        scale=last.scale,
        rise=last.bound,
        tokens=promise.tokens,
        tested=tested,
        chosen=Tested(scale, at.bound(choose, scale)),
        needed=None if found is not None else last.bound.sequences_for(budget),
        base_loss=promise.loss(before),
        before=before,
        after=after,
        kinds=_by_kind(promise, before, after, kinds or []),
        validation=[] if validation is None else at.every_loss(validation),
    )


class _Scaled:
    """An adapter at several scales, and what was measured of each, once."""

    def __init__(self, model: nn.Module, accelerator: Any) -> None:
        self._model, self._accelerator = model, accelerator
        self._shrinking = Shrinking(model)
        self._sums: dict[tuple[Probe, float], list[float]] = {}

    def set(self, scale: float) -> None:
        self._shrinking.set(scale)

    def losses(self, probe: Probe, scale: float) -> list[float]:
        """Of every sequence; the model is left at any scale."""
        if (probe, scale) not in self._sums:
            self.set(scale)
            self._sums[probe, scale] = probe.evaluate(self._model, self._accelerator)
        return self._sums[probe, scale]

    def bound(self, probe: Probe, scale: float) -> Bound:
        return probe.bound(self.losses(probe, 0.0), self.losses(probe, scale))

    def loss(self, probe: Probe, scale: float) -> float:
        """Nats a token."""
        return probe.loss(self.losses(probe, scale))

    def every_loss(self, probe: Probe) -> list[tuple[float, float]]:
        """(scale, nats a token) of every scale that was measured."""
        return sorted((scale, probe.loss(sums)) for (own, scale), sums in self._sums.items() if own is probe)


def _lowest(scales: Sequence[float], loss: Callable[[float], float]) -> float:
    """The scale before the first one that is worse."""
    best = scales[0]
    for scale in scales[1:]:
        if loss(scale) >= loss(best):
            break
        best = scale
    return best


def _by_kind(probe: Probe, before: list[float], after: list[float], kinds: list[str]) -> dict[str, Bound]:
    found = {}
    for kind in dict.fromkeys(kinds):
        own = [place for place, one in enumerate(kinds) if one == kind]
        found[kind] = probe.bound([before[place] for place in own], [after[place] for place in own])
    return found
