"""Passes through a model over the same text: forward, labels, and a backward pass for each drawing of them."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from alora_trainer.basics.modes import evaluation_mode
from alora_trainer.basics.processes import place
from alora_trainer.basics.progress import ShownProgress, length_of
from alora_trainer.errors import ALoRAError
from alora_trainer.importance.recording.curvature_checkpoint import CurvatureCheckpoint, Progress, Saved
from alora_trainer.importance.recording.drawn_labels import IGNORED_LABEL, batch_generator, draw_labels, wide

logger = logging.getLogger(__name__)


class Watcher(Protocol):
    """What sums something up of the passes."""

    def watching(self) -> AbstractContextManager[None]:
        """Sum up within the block."""

    def begin(self, mask: torch.Tensor) -> None:
        """Before a forward pass; `mask` (B, T) says which tokens are real."""

    def end_forward(self) -> None:
        """After it."""

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """All that its going on needs."""


@dataclass(frozen=True)
class Passes:
    """The passes through the model, the same ones each time.

    Args:
        model: with trainable factors in front of what is watched.
        labels: "sampled" or "text".
        draws: backward passes a batch, each with labels of its own.
        tokens: stop after the batch in which so many have been predicted, on this process.
        seed: of the sampled labels.
        checkpoint: where what was found so far is kept.
    """

    model: nn.Module
    labels: str
    draws: int
    tokens: int | None
    seed: int
    checkpoint: CurvatureCheckpoint

    def run(
        self, number: int, batches: Iterable[Mapping[str, torch.Tensor]], watcher: Watcher, progress: Progress
    ) -> None:
        """Pass the batches through, from where `progress` is, which goes on with them.

        Args:
            number: of the pass.
            batches: all of them, those that have been passed through before, too.
            watcher: what sees them.
            progress: of this pass.

        Raises:
            ALoRAError: the batches that have been passed through are others than those that now come first.
        """
        start, before = time.perf_counter(), progress.seconds
        iterator = iter(batches)
        self._pass_over(iterator, progress)
        shown = self._shown(number, batches, progress)
        with evaluation_mode(self.model), torch.enable_grad(), watcher.watching(), shown:
            for batch in iterator:
                if self.tokens is not None and progress.tokens >= self.tokens:
                    break
                progress.follow(batch)
                progress.batches += 1
                predicted = self._one(batch, watcher, progress.batches)
                progress.tokens += predicted
                shown.advance(1 if self.tokens is None else predicted)
                progress.seconds = before + time.perf_counter() - start
                if self.checkpoint.due(progress):
                    self.checkpoint.write(Saved(number, progress, *watcher.state()))

    def _shown(self, number: int, batches: Iterable[Mapping[str, torch.Tensor]], progress: Progress) -> ShownProgress:
        """By tokens, where so many are asked for, else by batches; of several processes the first tells its own."""
        what = "measuring curvature" if number == 1 else "measuring curvature in its eigenvectors"
        by = (self.tokens, "tokens", progress.tokens) if self.tokens is not None else None
        total, unit, first = by or (length_of(batches), "batches", progress.batches)
        return ShownProgress(what, total, logger, unit=unit, first=first, quiet=place()[0] != 0)

    def _pass_over(self, iterator: Iterator[Mapping[str, torch.Tensor]], progress: Progress) -> None:
        again = Progress()
        for batch in itertools.islice(iterator, progress.batches):
            again.follow(batch)
        if again.text != progress.text:
            raise self.checkpoint.foreign("another text")

    def _one(self, batch: Mapping[str, torch.Tensor], watcher: Watcher, number: int) -> int:
        """Pass one batch through; how many tokens were predicted."""
        factors = [p for p in self.model.parameters() if p.requires_grad]
        device = factors[0].device
        inputs = {name: value.to(device) for name, value in batch.items()}
        labels = inputs.pop("labels", None)
        mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
        if mask.shape != inputs["input_ids"].shape:
            raise ALoRAError(
                f"attention_mask is of shape {tuple(mask.shape)}, and input_ids are of {tuple(inputs['input_ids'].shape)}: "
                "curvature needs to know which tokens are real, one by one"
            )
        watcher.begin(mask)
        logits = self.model(**inputs, use_cache=False).logits
        watcher.end_forward()
        rows, drawn = self._predictions(logits, labels, mask, number)
        del logits
        for chosen in drawn:
            loss = nn.functional.cross_entropy(rows, chosen, reduction="sum")
            # By the factors, which lead back to every layer; what it finds for them is of no use.
            torch.autograd.grad(loss, factors, retain_graph=self.draws > 1, allow_unused=True)
        return len(rows)

    def _predictions(
        self, logits: torch.Tensor, labels: torch.Tensor | None, mask: torch.Tensor, number: int
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The logits (tokens, V) of every prediction, and the labels (tokens,) of each draw."""
        if self.labels == "text":
            if labels is None:
                raise ALoRAError("the text's own labels are asked for, and its batches have none: sample them")
            there = labels[:, 1:] != IGNORED_LABEL
            return wide(logits[:, :-1][there]), [labels[:, 1:][there]]
        rows = wide(logits[mask])
        generator = batch_generator(self.seed, number, rows.device)
        return rows, [draw_labels(rows, generator) for _ in range(self.draws)]
