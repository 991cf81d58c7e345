"""The trainers: the mixin, its settings, and the two parts that it runs, recording and protecting."""

from __future__ import annotations

from alora_trainer.trainer.config import ALoRAConfig
from alora_trainer.trainer.mixin import ALoRAMixin, ALoRATrainer
from alora_trainer.trainer.part import Part

__all__ = ["ALoRAConfig", "ALoRAMixin", "ALoRATrainer", "Part"]
