"""Replay: some general text is trained on beside the domain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from alora_trainer.experiment.methods.general_text import GeneralTextMixin, GeneralTextOptions
from alora_trainer.trainer.mixin import ALoRATrainer


class ReplayTrainer(GeneralTextMixin, ALoRATrainer):
    """``L = L_domain + weight * L_general``, both the mean cross-entropy of their own tokens."""

    def general_loss(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(**batch).loss


@dataclass(frozen=True)
class ReplayOptions(GeneralTextOptions):
    """Of `replay`."""
