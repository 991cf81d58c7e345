"""Whether a multiple-choice model is as sure as it is right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BINS = 15


def expected_calibration_error(
    log_likelihoods: Sequence[Sequence[float]], targets: Sequence[int], *, bins: int = BINS
) -> float:
    """Expected calibration error (Naeini et al. 2015; Guo et al. 2017) of multiple-choice answers.

    An item's confidence is the largest of the softmax over its choices' log-likelihoods (those that `acc` compares). Items
    fall into `bins` of equal width by their confidence; the error is the mean over items of |share of right answers - mean
    confidence| of the item's bin.

    Args:
        log_likelihoods: of every choice of every item, in nats; items may have different numbers of choices.
        targets: the right choice of every item.
        bins: how many between 0 and 1, each open to the left.

    Returns:
        A number between 0 (as sure as right) and 1.
    """
    confidence = np.empty(len(targets))
    right = np.empty(len(targets))
    for index, (scores, target) in enumerate(zip(log_likelihoods, targets, strict=True)):
        values = np.asarray(scores, dtype=np.float64)
        shares = np.exp(values - values.max())
        confidence[index] = shares.max() / shares.sum()
        right[index] = values.argmax() == target
    places = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = [abs(right[places == place].sum() - confidence[places == place].sum()) for place in np.unique(places)]
    return float(sum(gaps) / len(targets))
