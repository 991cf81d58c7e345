"""Multiple-choice accuracy as a metric of the `evaluate` library; loads from this folder, without the Hub."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """Share of the items whose right choice has the highest score of all its choices (the first of equal ones
counts as chosen), with its standard error."""

_KWARGS_DESCRIPTION = """
Args:
    predictions: for every item, the score (log-likelihood) of each of its choices.
    references: for every item, the index of the right choice.
Returns:
    accuracy: between 0 and 1
    accuracy_stderr: sample standard deviation over the square root of the number of items; None for one item
"""


class MultipleChoiceAccuracy(evaluate.Metric):
    """Share of items whose right choice has the highest score, as an `evaluate` metric."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        right = np.array(
            [float(np.argmax(scores) == target) for scores, target in zip(predictions, references, strict=True)]
        )
        error = float(right.std(ddof=1) / np.sqrt(len(right))) if len(right) > 1 else None
        return {"accuracy": float(right.mean()), "accuracy_stderr": error}
