"""Replay: some general text is trained on beside the domain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from alora_trainer.experiment.methods.general_text import GeneralTextMethod, GeneralTextOptions, GeneralTextTrainer


@dataclass(frozen=True)
class ReplayOptions(GeneralTextOptions):
    """Of `replay`."""


class ReplayTrainer(GeneralTextTrainer):
    """``L = L_domain + weight * L_general``, both the mean cross-entropy of their own tokens."""

    def general_loss(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(**batch).loss


@dataclass(frozen=True)
class Replay(GeneralTextMethod):
    """Trains on general text, too."""

    options_class = ReplayOptions
    trainer_class = ReplayTrainer


REPLAY = Replay("replay", "LoRA on the domain with some general text mixed in", starts_from="fresh")
