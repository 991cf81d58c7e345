"""While a model learns a domain: what happens to its general ability, and how much it has learned, as a curve."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from alora_trainer.basics.modes import evaluation_mode
from alora_trainer.evaluation.trainer_metrics import ChoiceMetrics, label_log_likelihoods, perplexity_metrics

if TYPE_CHECKING:
    from datasets import Dataset

PREFIX = "curve"


class LearningCurve(TrainerCallback):
    """Every so many optimizer steps, `Trainer.evaluate` on general text and on the domain's items.

    The log gets ``curve_general_perplexity``, ``curve_general_cross_entropy``, ``curve_domain_accuracy`` and
    ``curve_domain_accuracy_stderr``, at the first step, every `every` steps and at the end. The training is not changed by
    it: random generators are as they were before.

    Args:
        trainer: what is trained; add the callback to it with `add_callback`.
        every: optimizer steps between two measurements.
        general: blocks of tokens (``input_ids`` and ``labels``).
        domain: what `choice_rows` made, or None.
        folder: where each measurement is recorded with `evaluate.save`, or None.
    """

    def __init__(
        self,
        trainer: Any,
        *,
        every: int,
        general: Dataset,
        domain: tuple[Dataset, ChoiceMetrics] | None = None,
        folder: Path | None = None,
    ) -> None:
        self._trainer = trainer
        self._every = every
        self._general = general
        self._domain = domain
        self._folder = folder

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self._measure(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self._every == 0 or state.global_step == state.max_steps:
            self._measure(state)

    def _measure(self, state: Any) -> None:
        found = self._evaluate(self._general, "general", perplexity_metrics, ("perplexity", "cross_entropy"))
        if self._domain is not None:
            rows, metrics = self._domain
            found |= self._evaluate(rows, "domain", metrics, ("accuracy", "accuracy_stderr"))
        state.log_history.append({"step": state.global_step, "epoch": state.epoch, **found})
        if self._folder is not None and state.is_world_process_zero:
            import evaluate

            self._folder.mkdir(parents=True, exist_ok=True)
            evaluate.save(self._folder / f"step-{state.global_step}.json", step=state.global_step, **found)

    def _evaluate(
        self, data: Dataset, name: str, metrics: Callable[..., dict[str, float]], keys: tuple[str, ...]
    ) -> dict[str, float]:
        with _measuring(self._trainer, metrics):
            output = self._trainer.evaluation_loop(
                self._trainer.get_eval_dataloader(data),
                description=f"{PREFIX} {name}",
                prediction_loss_only=False,
                metric_key_prefix=f"{PREFIX}_{name}",
            )
        wanted = {f"{PREFIX}_{name}_{key}" for key in keys}
        return {key: float(value) for key, value in output.metrics.items() if key in wanted}


@contextmanager
def _measuring(trainer: Any, metrics: Callable[..., dict[str, float]]) -> Iterator[None]:
    """The trainer with these metrics, its model, metrics and random generators put back afterwards.

    `evaluation_loop` and not `evaluate`: that would tell callbacks of an evaluation, which some take as a reason to stop.
    """
    before = (trainer.compute_metrics, trainer.preprocess_logits_for_metrics)
    trainer.compute_metrics, trainer.preprocess_logits_for_metrics = metrics, label_log_likelihoods
    try:
        with torch.random.fork_rng(), evaluation_mode(trainer.model):
            yield
    finally:
        trainer.compute_metrics, trainer.preprocess_logits_for_metrics = before
