"""Token perplexity as a metric of the `evaluate` library; loads from this folder, without the Hub."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """e to the mean negative log-likelihood of the tokens of a text, in nats. It depends on the tokenizer: only
perplexities by the same tokenizer can be compared."""

_KWARGS_DESCRIPTION = """
Args:
    predictions: for every text, the log-likelihood in nats of each of its tokens.
    references: for every text, the tokens; those that are -100 do not count.
Returns:
    perplexity: e to the cross-entropy
    cross_entropy: mean negative log-likelihood, in nats a token
    tokens: how many tokens counted
"""


class TokenPerplexity(evaluate.Metric):
    """e to the mean negative log-likelihood a token, as an `evaluate` metric."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float32")),
                    "references": datasets.Sequence(datasets.Value("int64")),
                }
            ),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        total, tokens = 0.0, 0
        for scores, labels in zip(predictions, references, strict=True):
            counted = np.asarray(labels) != -100
            total += float(np.asarray(scores, dtype=np.float64)[counted].sum())
            tokens += int(counted.sum())
        if tokens == 0:
            raise ValueError("no token counts: all references are -100")
        cross_entropy = -total / tokens
        return {"perplexity": float(np.exp(cross_entropy)), "cross_entropy": cross_entropy, "tokens": tokens}
