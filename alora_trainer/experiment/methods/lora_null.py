"""LoRA-Null: the part of each weight that general text hardly uses is trained (docs/methods/lora_null.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods.method import Adapter, AdapterInputs
from alora_trainer.experiment.methods.starts import (
    StartOptions,
    TakenOut,
    base_matrix,
    batches,
    input_moments,
    linear_weights,
    set_factors,
    take_out,
)
from alora_trainer.weights.adapted import adapted_weights
from alora_trainer.weights.frozen_a import freeze_a


def null_space(covariance: torch.Tensor, rank: int) -> torch.Tensor:
    """The (n, rank) eigenvectors of `covariance` (n, n) with the smallest eigenvalues."""
    return torch.linalg.eigh(covariance).eigenvectors[:, :rank]


def null_space_factors(weight: torch.Tensor, null: torch.Tensor, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A (r, n) and B (m, r) with ``s B A = W N N'``, its singular values shared evenly between the two.

    Args:
        weight: W (m, n).
        null: N (n, r), orthonormal.
        scaling: PEFT's ``scaling`` s.
    """
    left, values, right = torch.linalg.svd(weight @ null, full_matrices=False)
    roots = (values / scaling).sqrt()
    return roots[:, None] * (right @ null.T), left * roots


@dataclass(frozen=True)
class LoRANull(TakenOut):
    """Takes the null space's part of each weight out of the base and trains it.

    Attributes:
        freezes_a: train B alone.
    """

    options_class = StartOptions
    needs_general_text = True

    freezes_a: bool = False

    def attach(self, base: PreTrainedModel, config: LoraConfig, inputs: AdapterInputs) -> Adapter:
        adapter = super().attach(base, config, inputs)
        if self.freezes_a and not freeze_a(adapted_weights(adapter.model)):
            raise ALoRAError("PEFT can keep one factor of an adapter frozen from version 0.21 on: install a newer one")
        return adapter

    def started(self, base: PreTrainedModel, config: LoraConfig, inputs: AdapterInputs) -> Any:
        assert inputs.collate is not None
        config.init_lora_weights = True
        model = get_peft_model(base, config)
        weights = linear_weights(model)
        text = batches(inputs.general, inputs.options.samples, inputs.collate, base.device)
        moments = input_moments(model, weights, text)
        largest = max(weight.rank for weight in weights)
        spaces = {id(moment): null_space(moment, largest) for moment in moments.values()}
        for weight in weights:
            null = spaces[id(moments[weight.name])][:, : weight.rank]
            matrix = base_matrix(weight)
            set_factors(weight, *null_space_factors(matrix, null.to(matrix.device), weight.scaling))
            take_out(weight)
        return model


LORA_NULL = LoRANull(
    "lora_null", "LoRA-Null: starts as the part of each weight that general text hardly uses", starts_from="fresh"
)
LORA_NULL_FROZEN = LoRANull("lora_null_frozen", "the same with A frozen", starts_from="fresh", freezes_a=True)
