"""Whether ALoRA differs from the others by more than chance: Welch's t-test over seeds, a paired bootstrap over items.

All statistics are scipy's.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from alora_trainer.evaluation.items import unpack_correct
from alora_trainer.experiment.report.gather import OURS, Comparison, MethodVariant

RESAMPLES = 9999
CONFIDENCE = 0.95


@cache
def significance(comparison: Comparison, resamples: int = RESAMPLES) -> list[dict[str, Any]]:
    """Every variant of `alora` against every other method.

    Methods that share varied settings (the same lambda, say) are compared where these are equal.

    Returns:
        One row a pair: ``ours``, ``other`` (labels); ``accuracy`` and ``perplexity``, each a Welch test over seeds
        (``difference`` of means, ours - other, in points or perplexity; ``t``, ``df``, ``p``; ``seeds`` of each side) or None
        with less than two seeds on a side; ``items``, the bootstrap (``difference`` in points, ``low`` and ``high`` of the
        95 % interval, ``p``, ``items``, ``seeds``) or None where answers by item are missing or items differ.
    """
    rows = []
    for ours in comparison.of(OURS):
        for other in comparison.variants:
            shared = set(ours.settings) & set(other.settings)
            if other.method == OURS or any(ours.settings[key] != other.settings[key] for key in shared):
                continue
            accuracies = [list(comparison.accuracies(one).values()) for one in (ours, other)]
            perplexities = [list(one.perplexities.values()) for one in (ours, other)]
            rows.append(
                {
                    "ours": ours.label,
                    "other": other.label,
                    "accuracy": welch(*accuracies),
                    "perplexity": welch(*perplexities),
                    "items": _over_items(comparison.task, ours, other, resamples),
                }
            )
    return rows


def welch(ours: Sequence[float], other: Sequence[float]) -> dict[str, Any] | None:
    """Welch's t-test for a difference of means (two-sided, variances not assumed equal); None with less than two values.

    Where both sides do not vary at all, t and p have no value (None).
    """
    from scipy import stats

    if len(ours) < 2 or len(other) < 2:
        return None
    difference = float(np.mean(ours) - np.mean(other))
    if np.var(ours) == 0 and np.var(other) == 0:
        t = df = p = math.nan
    else:
        with warnings.catch_warnings():
            # A side that does not vary at all (the base model, whatever the seed) is exact, not imprecise.
            warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
            result = stats.ttest_ind(ours, other, equal_var=False)
        t, df, p = float(result.statistic), float(result.df), float(result.pvalue)
    return {
        "difference": difference,
        "t": t if math.isfinite(t) else None,
        "df": df if math.isfinite(df) else None,
        "p": p if math.isfinite(p) else None,
        "seeds": [len(ours), len(other)],
    }


def paired_bootstrap(
    differences: np.ndarray, weights: np.ndarray | None = None, *, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """A bootstrap over items of the mean of paired differences, or of their sum over the sum of weights.

    Args:
        differences: of every item, ours - other.
        weights: of every item, what it adds to the denominator (a document its tokens): drawn together with the difference,
            since a sum over other documents is one over another number of tokens. Left out, each counts 1.
        resamples: how many.

    Returns:
        ``difference``, the mean; ``low`` and ``high``, the percentile interval of 95 %; ``p``, twice the smaller share of
        resampled means on either side of zero (at least 1 / (resamples + 1)).
    """
    from scipy import stats

    given = np.ones(len(differences)) if weights is None else weights
    found = stats.bootstrap(
        (differences, given),
        _ratio,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, 2_000_000 // len(differences)),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=0,
    )
    means = found.bootstrap_distribution
    tail = min((means <= 0).sum(), (means >= 0).sum()) + 1
    return {
        "difference": float(_ratio(differences, given)),
        "low": float(found.confidence_interval.low),
        "high": float(found.confidence_interval.high),
        "p": float(min(1.0, 2 * tail / (resamples + 1))),
    }


def _ratio(differences: np.ndarray, weights: np.ndarray, axis: int = -1) -> np.ndarray:
    ratio: np.ndarray = differences.sum(axis=axis) / weights.sum(axis=axis)
    return ratio


def _over_items(task: str, ours: MethodVariant, other: MethodVariant, resamples: int) -> dict[str, Any] | None:
    answers: list[np.ndarray] = []
    digests = set()
    seeds = sorted(set(ours.entries) & set(other.entries))
    for variant in (ours, other):
        rows = []
        for seed in seeds:
            score = variant.entries[seed].tasks[task]
            if score.correct is None or score.items is None:
                return None
            digests.add(score.items_digest)
            rows.append(unpack_correct(score.correct, score.items))
        answers.append(np.array(rows))
    if not seeds or len(digests) != 1:
        return None
    # An item's answers with several seeds are averaged first: items are what is drawn, and they are the same for all seeds.
    differences = 100 * (answers[0].mean(axis=0) - answers[1].mean(axis=0))
    return paired_bootstrap(differences, resamples=resamples) | {"items": len(differences), "seeds": seeds}
