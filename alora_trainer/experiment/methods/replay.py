"""Replay: some general text is trained on beside the domain; its control; and replay of what the base model says itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from alora_trainer.experiment.methods.curvature import HELD
from alora_trainer.experiment.methods.general_text import GeneralTextMethod, GeneralTextOptions, GeneralTextTrainer
from alora_trainer.importance.kinds.kronecker import KRONECKER


@dataclass(frozen=True)
class ReplayOptions(GeneralTextOptions):
    """Of `replay` and `padding`."""


class ReplayTrainer(GeneralTextTrainer):
    """``L = L_domain + weight * L_general``, both the mean cross-entropy of their own tokens."""

    def general_loss(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(**batch).loss


@dataclass(frozen=True)
class Replay(GeneralTextMethod):
    """Trains on general text, too."""

    options_class = ReplayOptions
    trainer_class = ReplayTrainer


@dataclass(frozen=True)
class Padding(Replay):
    """Trains on as many further rows of the domain where `replay` has rows of general text."""

    needs_general_text = False

    def make_trainer(self, *, options: GeneralTextOptions, general: Any = None, **kwargs: Any) -> Any:
        return super().make_trainer(options=options, general=kwargs["train_dataset"], **kwargs)


REPLAY = Replay("replay", "LoRA on the domain with some general text mixed in", starts_from="fresh")
PADDING = Padding("padding", "the control of `replay`: as many further rows of the domain", starts_from="fresh")
KFAC_REPLAY = Replay(
    "kfac_replay", "`kfac` with some general text mixed in", starts_from="fresh", importance=KRONECKER, alora=HELD
)
