"""The general probe: a little general text whose loss is watched during training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from alora_trainer.basics.modes import evaluation_mode
from alora_trainer.errors import ALoRAError
from alora_trainer.penalty.strength.budget import Rise
from alora_trainer.penalty.strength.promise import Bound, bound_of
from alora_trainer.weights.sharding import is_sharded, reshard


class Probe:
    """The mean negative log-likelihood (nats a token) of a small data set, without any trace left in the training.

    Evaluated without gradients, in evaluation mode, and with the random state as it was. Several processes share the
    sequences, and all of them get the same numbers.

    Args:
        dataset: rows with ``input_ids``, and ``labels`` if some tokens are not to count (-100).
        batch_size: sequences evaluated at a time.

    Raises:
        ALoRAError: there is no token to predict in it, or it has no ``input_ids``.
    """

    def __init__(self, dataset: Iterable[Mapping[str, Any]], batch_size: int) -> None:
        self._sequences = [_sequence(row, number) for number, row in enumerate(dataset)]
        self._batch_size = batch_size
        self._tokens = [sum(label != -100 for label in labels[1:]) for _, labels in self._sequences]
        # Of like length beside each other, so that a batch is hardly padded.
        self._order = sorted(range(len(self._sequences)), key=lambda number: len(self._sequences[number][0]))
        if sum(self._tokens) == 0:
            raise ALoRAError("the probe_dataset has no token to predict: give it sequences of two tokens or more")
        self._start: list[float] | None = None

    def evaluate(self, model: nn.Module, accelerator: Any) -> list[float]:
        """The summed negative log-likelihood of every sequence."""
        sums = torch.zeros(len(self._sequences), dtype=torch.float64, device=accelerator.device)
        own = self._order[accelerator.process_index :: accelerator.num_processes]
        most = range(0, len(self._sequences), accelerator.num_processes)  # of the first process
        reshard(model)
        sharded = is_sharded(model)
        with evaluation_mode(model), torch.random.fork_rng(), torch.no_grad(), accelerator.autocast():
            for start in range(0, len(most), self._batch_size):
                numbers = own[start : start + self._batch_size]
                if numbers:
                    sums[numbers] = self._batch(model, numbers, accelerator.device)
                elif sharded:  # a forward pass takes all processes
                    self._batch(model, [0], accelerator.device)
        reshard(model)
        return list(accelerator.reduce(sums, reduction="sum").tolist())

    def _batch(self, model: nn.Module, numbers: list[int], device: torch.device) -> torch.Tensor:
        rows = [self._sequences[number] for number in numbers]
        length = max(len(ids) for ids, _ in rows)
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
        for place, (row_ids, row_labels) in enumerate(rows):
            ids[place, : len(row_ids)] = torch.tensor(row_ids)
            labels[place, : len(row_ids)] = torch.tensor(row_labels)
            mask[place, : len(row_ids)] = 1
        output = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
        logits = output["logits"] if isinstance(output, Mapping) else output[0]
        # Of what counts alone, a row a token: along the vocabulary, which is then beside itself in memory.
        wanted = labels[:, 1:].to(logits.device)
        counts = wanted != -100
        losses = torch.zeros(wanted.shape, dtype=torch.float64, device=logits.device)
        own = nn.functional.cross_entropy(logits[:, :-1][counts].float(), wanted[counts], reduction="none")
        losses[counts] = own.double()
        return losses.sum(1)

    def set_start(self, sums: list[float]) -> None:
        """Take `evaluate`'s result at the start of the training, which rises are measured from."""
        if len(sums) != len(self._sequences):
            raise ALoRAError(
                "the checkpoint was made with another probe_dataset: resume with the same one, or start again"
            )
        self._start = sums

    @property
    def tokens(self) -> int:
        """How many are predicted."""
        return sum(self._tokens)

    @staticmethod
    def bound(before: list[float], after: list[float]) -> Bound:
        """What can be promised of the rise between two results of `evaluate`."""
        return bound_of(before, after)

    @property
    def start(self) -> list[float] | None:
        return self._start

    @property
    def start_loss(self) -> float:
        """At the start of the training, in nats a token."""
        assert self._start is not None
        return self.loss(self._start)

    def loss(self, sums: list[float]) -> float:
        """Nats a token."""
        return sum(sums) / sum(self._tokens)

    def rise(self, sums: list[float]) -> Rise:
        """The relative rise since the start, with the standard error of a ratio of sums over sequences."""
        assert self._start is not None
        total, count = sum(self._start), len(sums)
        value = (sum(sums) - total) / total
        if count < 2 or not math.isfinite(value):
            return Rise(value, 0.0)
        residuals = (now - then * (1 + value) for now, then in zip(sums, self._start, strict=True))
        variance = sum(residual**2 for residual in residuals) * count / (count - 1)
        return Rise(value, math.sqrt(variance) / total)


def _sequence(row: Mapping[str, Any], number: int) -> tuple[list[int], list[int]]:
    if "input_ids" not in row:
        raise ALoRAError(f"row {number} of the probe_dataset has no input_ids: tokenize the general text first")
    ids = [int(token) for token in row["input_ids"]]
    labels = [int(token) for token in row["labels"]] if row.get("labels") is not None else ids
    if len(labels) != len(ids):
        raise ALoRAError(f"row {number} of the probe_dataset has {len(ids)} input_ids and {len(labels)} labels")
    return ids, labels
