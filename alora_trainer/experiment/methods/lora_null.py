"""LoRA-Null: the part of each weight that general text hardly uses is trained (docs/methods/lora_null.md)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from alora_trainer.experiment.methods.method import Adapter, AdapterInputs, Method
from alora_trainer.experiment.methods.starts import (
    StartOptions,
    base_matrix,
    batches,
    check_difference,
    freeze_a,
    input_moments,
    linear_weights,
    saved_as_difference,
    set_factors,
    take_out,
)


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
class LoRANull(Method):
    """Takes the null space's part of each weight out of the base and trains it; saved is the difference, of rank 2 r.

    Attributes:
        freezes_a: train B alone.
    """

    options_class = StartOptions
    needs_general_text = True
    needs_plain_base = True
    is_plain = False
    one_process = True

    freezes_a: bool = False

    def attach(self, base: PreTrainedModel, config: LoraConfig, inputs: AdapterInputs) -> Adapter:
        assert inputs.collate is not None
        check_difference(config)
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
        if self.freezes_a:
            freeze_a(weights)
        return saved_as_difference(model, inputs.folder)


LORA_NULL = LoRANull(
    "lora_null", "LoRA-Null: starts as the part of each weight that general text hardly uses", starts_from="fresh"
)
LORA_NULL_FROZEN = LoRANull("lora_null_frozen", "the same with A frozen", starts_from="fresh", freezes_a=True)
