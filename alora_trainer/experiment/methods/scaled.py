"""The finished adapter times a number (WiSE-FT): what every method against forgetting has to beat (docs/methods/scaled.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from alora_trainer.artefact.scaled_adapter import scale_adapter
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods.curvature import HELD
from alora_trainer.experiment.methods.method import Method
from alora_trainer.importance.kinds.kronecker import KRONECKER


@dataclass(frozen=True)
class ScaledOptions:
    """Of a method that multiplies the trained adapter by a number.

    Attributes:
        alpha: the number; 0 would be the base model, and 1 is the trained adapter.

    Raises:
        ALoRAError: it does not lie above 0 and at most at 1.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise ALoRAError(f"alpha={self.alpha!r} must lie above 0 and at most at 1")


@dataclass(frozen=True)
class Scaled(Method):
    """Trains as its settings say, and saves ``alpha * s B A``."""

    options_class = ScaledOptions
    is_plain = False
    scales_itself = True
    finishes = True

    def finish(
        self, trained: Path, target: Path, options: ScaledOptions, load_base: Callable[[], PreTrainedModel]
    ) -> None:
        scale_adapter(trained, options.alpha, target)


SCALED = Scaled("scaled", "LoRA on the domain, its finished adapter times a number (WiSE-FT)", starts_from="fresh")
KFAC_SCALED = Scaled(
    "kfac_scaled", "`kfac`, its finished adapter times a number", starts_from="fresh", importance=KRONECKER, alora=HELD
)
