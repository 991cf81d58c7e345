"""ALoRA's accuracy less another method's where both have forgotten as much: at unequal forgetting a difference says little."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from alora_trainer.evaluation.items import unpack_correct
from alora_trainer.experiment.report.gather import BASE, OURS, Comparison, MethodVariant
from alora_trainer.experiment.report.method_result import SCALE
from alora_trainer.experiment.report.significance import RESAMPLES, paired_bootstrap
from alora_trainer.experiment.report.variant_rows import summary

_STRENGTHS = ("protecting.lam", "protecting.budget", SCALE)  # what a curve runs along


@dataclass(frozen=True)
class _Point:
    """A training, or the untouched model: where it lies, and its answers by item, averaged over seeds (None if not kept)."""

    rise: float
    accuracy: float
    answers: np.ndarray | None
    digest: str | None


@dataclass(frozen=True)
class _Reading:
    point: _Point
    between: bool  # whether it lies between two trainings, or one and the untouched model


@cache
def matched_accuracy(comparison: Comparison, resamples: int = RESAMPLES) -> tuple[list[dict[str, Any]], list[str]]:
    """Every curve of `alora` against that of every other method, read at the most forgetting that both reach.

    A curve is a method's trainings that differ in strength alone, and the untouched model at no forgetting; between two of
    these it is a straight line (of accuracy over the rise of general perplexity, and of each item's answers).

    Returns:
        One row a pair: ``ours``, ``other`` (labels), ``at`` (the rise in per cent), ``ours_between`` and ``other_between``
        (whether that side was read between two points), ``difference`` (ours - other, points), ``low`` and ``high`` of the
        95 % interval of a paired bootstrap over items (None where answers by item are missing or items differ). And why those
        that are missing are: a sentence each.
    """
    curves = _curves(comparison)
    base = _base(comparison)
    if base is None:
        return [], []
    rows, missing = [], []
    for ours, own in curves.get(OURS, {}).items():
        for method, others in curves.items():
            for label, other in others.items() if method != OURS else ():
                at = min(max(point.rise for point in own), max(point.rise for point in other))
                if at <= 0:
                    missing.append(
                        f"{ours} and {label}: one of them forgot nothing, so there is no forgetting to compare at."
                    )
                    continue
                sides = [_read([base, *points], at) for points in (own, other)]
                found: dict[str, Any] = {"ours": ours, "other": label, "method": method, "at": at}
                found |= {"ours_between": sides[0].between, "other_between": sides[1].between}
                rows.append(found | _difference(sides[0].point, sides[1].point, resamples))
    return rows, missing


def _curves(comparison: Comparison) -> dict[str, dict[str, list[_Point]]]:
    """By method, then by what is set beside the strength: the trainings whose rise and accuracy are known."""
    curves: dict[str, dict[str, list[_Point]]] = {}
    for variant in comparison.variants:
        point = _point(comparison, variant)
        if variant.method != BASE and point is not None:
            further = {key: value for key, value in variant.settings.items() if key not in _STRENGTHS}
            what = ", ".join(f"{key.rpartition('.')[2]}={json.dumps(value)}" for key, value in further.items())
            label = f"{variant.method} ({what})" if what else variant.method
            curves.setdefault(variant.method, {}).setdefault(label, []).append(point)
    return curves


def _base(comparison: Comparison) -> _Point | None:
    return next((_point(comparison, variant) for variant in comparison.of(BASE)), None)


def _point(comparison: Comparison, variant: MethodVariant) -> _Point | None:
    rise = summary(list(comparison.rises(variant).values()))
    accuracy = summary(list(comparison.accuracies(variant).values()))
    if rise is None or accuracy is None:
        return None
    scores = [result.tasks[comparison.task] for result in variant.entries.values()]
    digests = {score.items_digest for score in scores}
    answers = [
        unpack_correct(score.correct, score.items)
        for score in scores
        if score.correct is not None and score.items is not None
    ]
    kept = len(answers) == len(scores) and len(digests) == 1
    return _Point(
        rise["mean"],
        accuracy["mean"],
        np.mean(answers, axis=0) if kept else None,
        digests.pop() if kept else None,
    )


def _read(points: Sequence[_Point], at: float) -> _Reading:
    """A curve at a rise that it reaches."""
    ordered = sorted(points, key=lambda point: point.rise)
    exact = [point for point in ordered if point.rise == at]
    if exact:
        return _Reading(exact[0], False)
    before = [point for point in ordered if point.rise < at][-1]
    after = next(point for point in ordered if point.rise > at)
    share = (at - before.rise) / (after.rise - before.rise)
    answers = None
    if before.answers is not None and after.answers is not None and before.digest == after.digest:
        answers = (1 - share) * before.answers + share * after.answers
    accuracy = (1 - share) * before.accuracy + share * after.accuracy
    return _Reading(_Point(at, accuracy, answers, before.digest), True)


def _difference(ours: _Point, other: _Point, resamples: int) -> dict[str, Any]:
    if ours.answers is None or other.answers is None or ours.digest != other.digest:
        return {"difference": ours.accuracy - other.accuracy, "low": None, "high": None}
    found = paired_bootstrap(100 * (ours.answers - other.answers), resamples=resamples)
    return {key: found[key] for key in ("difference", "low", "high")}
