"""PEFT's orthogonal subspace fine-tuning: the leading singular directions of each weight are frozen (docs/methods/osf.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft import LoraConfig, OSFConfig, get_peft_model
from transformers import PreTrainedModel

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods.method import Adapter, AdapterInputs, Method


@dataclass(frozen=True)
class OSFOptions:
    """Of `osf`.

    Attributes:
        effective_rank: share of each weight's singular directions that is frozen; the rest is trained.

    Raises:
        ALoRAError: it does not lie between 0 and 1.
    """

    effective_rank: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.effective_rank < 1:
            raise ALoRAError(f"effective_rank={self.effective_rank!r} must lie between 0 and 1")


@dataclass(frozen=True)
class OrthogonalSubspace(Method):
    """Trains PEFT's OSF adapter on the recipe's target modules."""

    options_class = OSFOptions
    needs_plain_base = True
    is_plain = False
    leaves_lora = False

    def attach(self, base: PreTrainedModel, config: LoraConfig, inputs: AdapterInputs) -> Adapter:
        osf: Any = OSFConfig(
            effective_rank=inputs.options.effective_rank,
            target_modules=config.target_modules,
            task_type=config.task_type,
        )
        return Adapter.plain(get_peft_model(base, osf))


OSF = OrthogonalSubspace("osf", "PEFT's orthogonal subspace fine-tuning", starts_from="fresh")
