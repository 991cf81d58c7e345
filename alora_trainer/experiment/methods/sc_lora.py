"""SC-LoRA: the adapter's outputs start where the domain's lie and general text's do not (docs/methods/sc_lora.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods.method import AdapterInputs
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


@dataclass(frozen=True)
class SCLoRAOptions(StartOptions):
    """Of `sc_lora`.

    Attributes:
        beta: what avoiding general text's outputs counts, against reaching the domain's: 0 looks at the domain alone, 1 at
            general text alone.

    Raises:
        ALoRAError: it does not lie between 0 and 1.
    """

    beta: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta <= 1:
            raise ALoRAError(f"beta={self.beta!r} must lie between 0 and 1")


def subspace_factors(
    weight: torch.Tensor, contrast: torch.Tensor, rank: int, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """A (r, n) and B (m, r) with ``s B A = Q Q' W``, Q the r leading eigenvectors of ``W contrast W'``.

    Args:
        weight: W (m, n).
        contrast: (n, n): (1 - beta) E[x x'] of the domain's inputs - beta E[x x'] of general text's.
        rank: r.
        scaling: PEFT's ``scaling`` s, which the two share evenly.
    """
    outputs = weight @ contrast @ weight.T
    # Rounding makes it a little asymmetric.
    leading = torch.linalg.eigh((outputs + outputs.T) / 2).eigenvectors[:, -rank:].flip(1)
    return leading.T @ weight / scaling**0.5, leading / scaling**0.5


@dataclass(frozen=True)
class SCLoRA(TakenOut):
    """Takes each weight's part in the subspace out of the base and trains it."""

    options_class = SCLoRAOptions
    needs_general_text = True
    needs_domain_items = True

    def started(self, base: PreTrainedModel, config: LoraConfig, inputs: AdapterInputs) -> Any:
        options: SCLoRAOptions = inputs.options
        assert inputs.collate is not None
        config.init_lora_weights = True
        model = get_peft_model(base, config)
        weights = linear_weights(model)
        general, domain = (
            input_moments(model, weights, batches(rows, options.samples, inputs.collate, base.device))
            for rows in (inputs.general, inputs.domain)
        )
        for weight in weights:
            matrix = base_matrix(weight)
            contrast = (1 - options.beta) * domain[weight.name] - options.beta * general[weight.name]
            set_factors(weight, *subspace_factors(matrix, contrast.to(matrix.device), weight.rank, weight.scaling))
            take_out(weight)
        return model


SC_LORA = SCLoRA(
    "sc_lora", "SC-LoRA: starts where the domain's outputs lie and general text's do not", starts_from="fresh"
)
