"""FINCH: a learning rate that falls on batches of high loss and rises as the loss falls (docs/methods/finch.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from alora_trainer.basics.files import read_json, write_json
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods.method import Method
from alora_trainer.trainer.mixin import ALoRATrainer
from alora_trainer.trainer.part import Part
from alora_trainer.weights.trained_weight import Matrices, TrainedWeight

STATE_FILE = "loss_adaptive_rate.json"


@dataclass(frozen=True)
class FinchOptions:
    """Of `finch`.

    Attributes:
        reference: the loss (nats) at which the rate is the recipe's; None is that of the first step.
        decay: of the moving average of the loss that the rate goes by; 0 goes by each step's own.
        most: the most that the recipe's rate is multiplied by.

    Raises:
        ALoRAError: a number is out of range.
    """

    reference: float | None = None
    decay: float = 0.0
    most: float = 10.0

    def __post_init__(self) -> None:
        if self.reference is not None and self.reference <= 0:
            raise ALoRAError(f"reference={self.reference!r} must be positive")
        if not 0 <= self.decay < 1:
            raise ALoRAError(f"decay={self.decay!r} must be at least 0 and less than 1")
        if self.most < 1:
            raise ALoRAError(f"most={self.most!r} must be at least 1")


class LossAdaptiveRate(Part):
    """Multiplies every step's learning rates by ``sqrt(reference / L)``, L the step's loss or its moving average.

    Args:
        options: what the reference is, and how L is averaged.
    """

    needs_weights = True

    def __init__(self, options: FinchOptions) -> None:
        self._options = options
        self._reference = options.reference
        self._mean: float | None = None
        self._loss: torch.Tensor | None = None
        self._rates: list[float] = []
        self._factor = 1.0

    @property
    def watches_gradients(self) -> bool:
        return True

    def begin(self, trainer: Trainer, weights: Sequence[TrainedWeight], *, resumes: bool) -> None:
        self._trainer: Any = trainer
        self._reference, self._mean, self._loss = self._options.reference, None, None

    def load(self, folder: str) -> None:
        state = read_json(Path(folder) / STATE_FILE)
        if state is None:
            raise ALoRAError(f"{folder} has no {STATE_FILE}: begin this training anew")
        self._reference, self._mean = state["reference"], state["mean"]

    def save(self, folder: str) -> None:
        if self._trainer.args.should_save:
            write_json(Path(folder) / STATE_FILE, {"reference": self._reference, "mean": self._mean})

    def add_data_loss(self, loss: torch.Tensor) -> None:
        self._loss = loss.float() if self._loss is None else self._loss + loss.float()

    def before_step(self, gradients: Mapping[str, Matrices], *, loss_scale: float | None, tokens: int) -> None:
        assert self._loss is not None
        loss, self._loss = float(self._loss), None
        decay = self._options.decay
        self._mean = loss if self._mean is None else decay * self._mean + (1 - decay) * loss
        if self._reference is None:
            self._reference = self._mean
        # A loss of nothing asks for no bound: the most.
        self._factor = min(self._options.most, math.sqrt(self._reference / max(self._mean, 1e-12)))
        groups = self._trainer.optimizer.param_groups
        self._rates = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] = group["lr"] * self._factor

    def after_step(self, *, skipped: bool) -> None:
        # The schedule goes on from its own rates.
        for group, rate in zip(self._trainer.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate

    def logs(self) -> dict[str, float]:
        return {"rate_factor": self._factor}


@dataclass(frozen=True)
class Finch(Method):
    """Trains a plain adapter with `LossAdaptiveRate`."""

    options_class = FinchOptions
    is_plain = False
    one_process = True

    def make_trainer(self, *, options: FinchOptions, general: Any = None, **kwargs: Any) -> Any:
        return ALoRATrainer(**kwargs, parts=[LossAdaptiveRate(options)])


FINCH = Finch("finch", "LoRA on the domain, its learning rate lower on batches of high loss", starts_from="fresh")
