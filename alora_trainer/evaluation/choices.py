"""How sure a multiple-choice model is of the right answers: it moves where accuracy over a few hundred items cannot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from alora_trainer.errors import ALoRAError


def choice_losses(log_likelihoods: Sequence[Sequence[float]], targets: Sequence[int]) -> np.ndarray:
    """By item, ``-ln softmax(log-likelihoods)[target]`` in nats: the cross-entropy over the choices.

    Args:
        log_likelihoods: of every choice of every item, in nats; items may have different numbers of choices.
        targets: the right choice of every item.

    Returns:
        One number an item, float64.
    """
    losses = np.empty(len(targets))
    for item, (scores, target) in enumerate(zip(log_likelihoods, targets, strict=True)):
        values = np.asarray(scores, dtype=np.float64)
        top = values.max()
        losses[item] = top + math.log(np.exp(values - top).sum()) - values[target]
    return losses


def choice_figures(log_likelihoods: Sequence[Sequence[float]], targets: Sequence[int]) -> dict[str, float]:
    """``choice_cross_entropy``, its standard error over items (nan for one item), and ``chance``, of a `TaskScore`.

    Args:
        log_likelihoods, targets: as of `choice_losses`.
    """
    losses = choice_losses(log_likelihoods, targets)
    count = len(losses)
    error = float(losses.std(ddof=1) / math.sqrt(count)) if count > 1 else math.nan
    return {
        "choice_cross_entropy": float(losses.mean()),
        "choice_cross_entropy_stderr": error,
        "chance": float(np.mean([1 / len(one) for one in log_likelihoods])),
    }


def transitions(
    before: Sequence[float] | np.ndarray, after: Sequence[float] | np.ndarray, choices: Sequence[int]
) -> dict[str, Any]:
    """Which items a model lost and which it won, and how many of each guessing would have turned over by itself.

    An item is lost if it was answered rightly before and wrongly after (1 -> 0), won the other way round. An item of k choices
    that is known neither before nor after, and is guessed both times, is wrong both times with ((k - 1) / k)**2 and turns over
    either way with (k - 1) / k**2: for each that is wrong both times, 1 / (k - 1) of an item is expected to be lost, and
    as much to be won. One that was known and is now guessed is seen as lost with (k - 1) / k. The adjusted shares are therefore
    ``sum (seen - expected) k / (k - 1)`` over the number of items: unbiased where what is not known is guessed evenly and
    independently, and below zero where a model turns over less than guessing would.

    The idea of counting items and of adjusting for chance is of arXiv 2510.17776, which adjusts accuracies; this adjusts
    the counts.

    Args:
        before, after: 1 for an item that was answered rightly, 0 for one that was not.
        choices: how many choices each item has, two or more.

    Returns:
        ``items``; ``lost`` and ``won``, as shares of the items; ``lost_adjusted`` and ``won_adjusted``, the same without what
        guessing turns over.

    Raises:
        ALoRAError: the three are not of one length, or of no items.
    """
    was, now, counts = (np.asarray(one, dtype=np.float64) for one in (before, after, choices))
    if not len(was) or not len(was) == len(now) == len(counts):
        raise ALoRAError(
            f"there are {len(was)} answers before, {len(now)} after and {len(counts)} numbers of choices: they must be of the "
            "same items"
        )
    lost, won = (was > now).astype(float), (now > was).astype(float)
    expected = ((was == 0) & (now == 0)) / (counts - 1)
    seen = counts / (counts - 1)
    return {
        "items": len(was),
        "lost": float(lost.mean()),
        "won": float(won.mean()),
        "lost_adjusted": float(((lost - expected) * seen).mean()),
        "won_adjusted": float(((won - expected) * seen).mean()),
    }
