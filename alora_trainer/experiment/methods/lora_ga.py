"""LoRA-GA: the adapter starts in the directions of the domain's own gradient (docs/methods/lora_ga.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.utils.other import get_pattern_key
from transformers import PreTrainedModel

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods.method import AdapterInputs
from alora_trainer.experiment.methods.starts import (
    StartOptions,
    TakenOut,
    all_linear,
    base_matrix,
    batches,
    check_rank,
    linear_weights,
    set_factors,
    take_out,
)

try:
    from peft.tuners.lora.config import LoraGAConfig
    from peft.tuners.lora.loraga import get_target_modules, preprocess_loraga
except ImportError:  # an older PEFT
    LoraGAConfig = None

# PEFT's name for the gradient that it leaves on a layer.
_GRADIENT = "_peft_loraga_grad"


@dataclass(frozen=True)
class LoRAGAOptions(StartOptions):
    """Of `lora_ga`.

    Attributes:
        equation: "peft" as PEFT 0.21 has it, B times the gradient's singular values; "paper" without them.
        gamma: the start is divided by its square root ("peft"), or by itself ("paper").

    Raises:
        ALoRAError: there is no such equation, or `gamma` is not positive.
    """

    equation: str = "peft"
    gamma: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.equation not in ("peft", "paper"):
            raise ALoRAError(f"equation={self.equation!r} is unknown: use peft or paper")
        if self.gamma < 1:
            raise ALoRAError(f"gamma={self.gamma!r} must be at least 1")


def gradient_factors(gradient: torch.Tensor, rank: int, gamma: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The paper's A (r, n) and B (m, r): ``A = c V'[:r]``, ``B = c U[:, r:2r]`` with ``c = m**0.25 / gamma**0.5``.

    Args:
        gradient: of the weight, ``U S V'`` (m, n).
        rank: r, at most half of the smaller side.
        gamma: the paper's hyperparameter.
    """
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    scale = gradient.shape[0] ** 0.25 / gamma**0.5
    return scale * right[:rank], scale * left[:, rank : 2 * rank]


@dataclass(frozen=True)
class LoRAGA(TakenOut):
    """Starts in the leading directions of the gradient on the domain, taken out of the base weights."""

    options_class = LoRAGAOptions
    needs_domain_items = True

    def started(self, base: PreTrainedModel, config: LoraConfig, inputs: AdapterInputs) -> Any:
        options: LoRAGAOptions = inputs.options
        assert inputs.collate is not None
        if LoraGAConfig is None:
            raise ALoRAError("lora_ga needs PEFT 0.21: install a newer one")
        config.init_lora_weights = "lora_ga"
        config.lora_ga_config = LoraGAConfig(stable_gamma=options.gamma)
        if config.target_modules == "all-linear":
            config.target_modules = all_linear(base)
        items = list(batches(inputs.domain, options.samples, inputs.collate, base.device))

        def sum_gradients() -> None:
            for batch in items:
                base(**batch, use_cache=False).loss.backward()

        preprocess_loraga(base, config, train_step=sum_gradients)
        for name, module in get_target_modules(base, config):
            rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), name), config.r)
            check_rank(name, rank, module.weight.shape, directions=2)  # PEFT's start would fall short of some
        if options.equation == "paper":
            config.init_lora_weights = True
        model = get_peft_model(base, config)
        for weight in linear_weights(model, directions=2):
            if options.equation == "paper":
                layer = weight.layer.get_base_layer()
                gradient = layer.__dict__.pop(_GRADIENT).to(base_matrix(weight).dtype)
                gradient = gradient.T if weight.stored_transposed else gradient
                set_factors(weight, *gradient_factors(gradient, weight.rank, options.gamma))
                take_out(weight)
        return model


LORA_GA = LoRAGA(
    "lora_ga", "PEFT's LoRA-GA: starts in the directions of the domain's own gradient", starts_from="fresh"
)
