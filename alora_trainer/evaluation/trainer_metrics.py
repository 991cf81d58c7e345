"""`compute_metrics` for `transformers.Trainer`: token perplexity and multiple-choice accuracy, by our `evaluate` modules.

The Trainer would keep the logits of everything that it evaluates, vocabulary times tokens. `label_log_likelihoods`, given to
it as ``preprocess_logits_for_metrics``, leaves one number a token, and both metrics are made of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from transformers import EvalPrediction, PreTrainedTokenizerBase

from alora_trainer.data.answers import encode_answers
from alora_trainer.data.domain import IGNORED_LABEL
from alora_trainer.data.sources import read_lines
from alora_trainer.data.tasks import Task
from alora_trainer.errors import ALoRAError

MODULES = Path(__file__).resolve().parent / "metrics"


@cache
def load_metric(name: str) -> Any:
    """The `evaluate` metric ``token_perplexity`` or ``multiple_choice_accuracy``, from the package itself (no Hub)."""
    import evaluate

    return evaluate.load(str(MODULES / name))


def label_log_likelihoods(logits: Any, labels: torch.Tensor) -> torch.Tensor:
    """The log-likelihood of every label given what stands before it, in nats; float32, of the labels' shape.

    Zero at the first position and wherever the label is -100.

    Args:
        logits: (batch, length, vocabulary), or a tuple that begins with them.
        labels: (batch, length).
    """
    if isinstance(logits, tuple):
        logits = logits[0]
    scores = torch.log_softmax(logits[:, :-1].float(), dim=-1)
    targets = labels[:, 1:]
    chosen = scores.gather(2, targets.clamp(min=0).unsqueeze(2)).squeeze(2)
    found = torch.zeros(labels.shape, dtype=torch.float32, device=labels.device)
    found[:, 1:] = chosen.masked_fill(targets == IGNORED_LABEL, 0.0)
    return found


def perplexity_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """`compute_metrics` for general text: ``perplexity`` and ``cross_entropy`` (nats a token)."""
    labels = np.array(prediction.label_ids)
    labels[:, 0] = IGNORED_LABEL  # nothing predicts the first token of a block
    metric = load_metric("token_perplexity")
    result = metric.compute(predictions=_rows(prediction.predictions), references=labels.tolist())
    return {key: float(result[key]) for key in ("perplexity", "cross_entropy")}


@dataclass(frozen=True)
class ChoiceMetrics:
    """`compute_metrics` for a data set that `choice_rows` made: ``accuracy`` and ``accuracy_stderr``.

    Attributes:
        choices: how many rows (choices) each item has.
        targets: the right one of each.
    """

    choices: Sequence[int]
    targets: Sequence[int]

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        scores = np.asarray(prediction.predictions, dtype=np.float64)
        counted = np.asarray(prediction.label_ids) != IGNORED_LABEL
        totals = np.where(counted, scores, 0.0).sum(axis=1)
        if len(totals) != sum(self.choices):
            raise ALoRAError(f"{len(totals)} rows were evaluated, not the {sum(self.choices)} that belong to the items")
        starts = np.cumsum([0, *self.choices])
        items = [totals[start:end].tolist() for start, end in zip(starts, starts[1:], strict=False)]
        result = load_metric("multiple_choice_accuracy").compute(predictions=items, references=list(self.targets))
        return {key: float(value) for key, value in result.items() if value is not None}


def choice_rows(
    task: Task, path: Path | str, tokenizer: PreTrainedTokenizerBase, *, max_length: int, items: int | None = None
) -> tuple[Dataset, ChoiceMetrics]:
    """A task's items as rows for `Trainer.evaluate`, one for each choice, and the `compute_metrics` that goes with them.

    Args:
        task: one with choices.
        path: a JSON lines file in the task's schema.
        tokenizer: of the model.
        max_length: longer rows lose the beginning of the prompt, as when lm-eval scores them.
        items: take only the first so many.

    Raises:
        ALoRAError: the task has free answers; `encode_answers` refuses an item, or a choice does not fit.
    """
    if task.choices is None:
        raise ALoRAError(f"the task {task.name} has no choices, so there is no accuracy to measure while training")
    encoded = encode_answers(task, path, tokenizer, choices=True, items=items)
    rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    targets = []
    for number, (doc, pairs) in enumerate(zip(read_lines(Path(path)), encoded, strict=False), start=1):
        for context, continuation, _ in pairs:
            if len(continuation) >= max_length:
                raise ALoRAError(f"a choice of item {number} of {path} does not fit into max_length {max_length}")
            ids = (context + continuation)[-max_length:]
            rows["input_ids"].append(ids)
            rows["labels"].append([IGNORED_LABEL] * (len(ids) - len(continuation)) + continuation)
        targets.append([task.target_delimiter + choice for choice in task.choices(doc)].index(task.completion(doc)))
    features = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))})
    return Dataset.from_dict(rows, features=features), ChoiceMetrics([len(pairs) for pairs in encoded], targets)


def _rows(values: Any) -> list[list[float]]:
    return np.asarray(values, dtype=np.float64).tolist()
