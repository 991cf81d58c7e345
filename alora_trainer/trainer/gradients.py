"""The gradients of an optimizer step, looked at before the optimizer takes them, and those of the data alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.nn.utils import get_total_norm

from alora_trainer.errors import Diverged
from alora_trainer.weights.trained_weight import Matrices, TrainedWeight, whole


def check_gradients(model: torch.nn.Module, weights: Sequence[TrainedWeight]) -> None:
    """Refuse gradients that are not finite, or whose squares are not: clipping and Adam make a step of NaN of them, or none.

    Args:
        model: with the gradients of the whole step, the same on all processes. An engine that keeps them to itself leaves
            none, and nothing is looked at.
        weights: those that train, to name one.

    Raises:
        Diverged: with the weight that shows it first.
    """
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if not found or bool(torch.isfinite(whole(get_total_norm(list(found.values()))))):
        return
    names = {id(p): weight.name for weight in weights for p in weight.parameters}
    owners = {name: names.get(id(p), name) for name, p in model.named_parameters()}
    for name, gradient in found.items():  # one after the other, as they may be spread over processes
        if not bool(torch.isfinite(whole(gradient)).all()):
            raise Diverged("the gradient", owners[name])
    largest = max(found, key=lambda name: float(whole(found[name]).abs().max()))
    raise Diverged("the square of the gradient", owners[largest])


def show_before_step(engine: Any, show: Callable[[], None]) -> None:
    """Call `show` once the gradients of a step are whole, of a DeepSpeed engine, which steps within its backward call.

    Args:
        engine: made for one training; a later one has another, or shows its own in place of these.
        show: looks at the gradients.
    """
    step = getattr(engine.step, "alora_plain_step", engine.step)

    def shown(*args: Any, **settings: Any) -> Any:
        show()
        return step(*args, **settings)

    shown.alora_plain_step = step  # type: ignore[attr-defined]
    engine.step = shown


class DataGradients(Mapping[str, Matrices]):
    """The gradients of a step's data loss alone, by weight name: unscaled, not yet clipped, and whole.

    Each is computed when it is asked for, and not kept, so that weights that are spread over processes are brought together
    one at a time. All processes must then ask for the same ones in the same order.

    Args:
        weights: those that train, after the backward pass.
        scale: the loss scaler's factor.
        added: what else is in their gradients, by weight name: of every part that has a term of its own.
    """

    def __init__(self, weights: Sequence[TrainedWeight], scale: float, added: Sequence[Mapping[str, Matrices]]) -> None:
        self._weights = {weight.name: weight for weight in weights}
        self._scale = scale
        self._added = added

    def __getitem__(self, name: str) -> Matrices:
        gradients = self._weights[name].gradients(self._scale)
        for of_part in self._added:
            for gradient, own in zip(gradients, of_part.get(name, ()), strict=False):
                gradient.sub_(own)
        return gradients

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)
