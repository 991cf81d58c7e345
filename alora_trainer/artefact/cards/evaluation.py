"""What an evaluation found, for a card: model-index metadata, and what was forgotten in words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeGuard

from huggingface_hub import EvalResult

from alora_trainer.basics.scores import Score, TaskScore

NOT_STATED = "not-stated"


@dataclass(frozen=True)
class CardScores:
    """What a card says of an evaluation.

    Attributes:
        score: of the model that the card is of.
        base: of the base model, where it was evaluated beside it.
    """

    score: Score
    base: Score | None = None


def evaluation_entries(scores: CardScores) -> list[Any]:
    """The score as `huggingface_hub.EvalResult`: accuracies of the tasks, and perplexity on general text."""
    entries = []
    for name, task in scores.score.tasks.items():
        # Items of a local file are of no data set of the Hub, even if one is called like the task.
        source = task.source or {}
        for metric, value in (("accuracy", task.acc), ("length-normalised accuracy", task.acc_norm)):
            if _is_number(value):
                entries.append(
                    EvalResult(
                        task_type="question-answering",
                        dataset_name=name,
                        dataset_type=source.get("hub", NOT_STATED),
                        dataset_split=source.get("split"),
                        metric_type="accuracy",
                        metric_name=metric,
                        metric_value=round(value, 6),
                    )
                )
    perplexity = scores.score.general.token_perplexity
    if _is_number(perplexity):
        entries.append(
            EvalResult(
                task_type="text-generation",
                dataset_name="held-out general text",
                dataset_type="general-text",
                metric_type="perplexity",
                metric_name="perplexity of a token",
                metric_value=round(perplexity, 6),
            )
        )
    return entries


def forgotten_text(scores: CardScores) -> str | None:
    """How perplexity on general text and the tasks' accuracy changed against the base model, in a few sentences."""
    base = scores.base or Score()
    after, before = scores.score.general.token_perplexity, base.general.token_perplexity
    lines = []
    if _is_number(after) and _is_number(before) and before > 0:
        change = 100 * (after / before - 1)
        lines.append(
            f"Perplexity on held-out general text went from {before:.2f} (base model) to {after:.2f} ({change:+.1f} %)."
        )
    elif _is_number(after):
        lines.append(f"Perplexity on held-out general text is {after:.2f}; the base model was not measured beside it.")
    for name, task in scores.score.tasks.items():
        before = base.tasks.get(name, TaskScore()).acc
        if _is_number(task.acc):
            was = f" (base model {100 * before:.1f} %)" if _is_number(before) else ""
            items = f" on {task.items} items" if task.items is not None else ""
            lines.append(f"Accuracy in {name} is {100 * task.acc:.1f} %{was}{items}.")
    return " ".join(lines) or None


def _is_number(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)
