"""EVA: the adapter starts in the directions that the domain's own inputs vary most in (docs/methods/eva.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.config import EvaConfig
from peft.tuners.lora.eva import initialize_lora_eva_weights
from transformers import PreTrainedModel

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods.method import Adapter, AdapterInputs, Method
from alora_trainer.experiment.methods.starts import StartOptions, batches, check_rank, linear_weights
from alora_trainer.weights.adapted import adapted_weights

# Times that the items may pass through the model before the directions stand still; PEFT itself never gives up.
_PASSES = 50


@dataclass(frozen=True)
class EVAOptions(StartOptions):
    """Of `eva`.

    Attributes:
        rho: a layer's rank may become this many times `lora.r`, and others less, down to none; 1 leaves all ranks as they are.

    Raises:
        ALoRAError: it is below 1.
    """

    rho: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rho < 1:
            raise ALoRAError(f"rho={self.rho!r} must be at least 1")


@dataclass(frozen=True)
class InputDirections(Method):
    """PEFT gives A the leading principal directions of each layer's inputs, and the ranks to the layers where they say most."""

    options_class = EVAOptions
    needs_domain_items = True
    is_plain = False
    one_process = True

    def attach(self, base: PreTrainedModel, config: LoraConfig, inputs: AdapterInputs) -> Adapter:
        options: EVAOptions = inputs.options
        assert inputs.collate is not None
        config.init_lora_weights = "eva"
        config.eva_config = EvaConfig(rho=options.rho)
        model: Any = get_peft_model(base, config)
        weights = linear_weights(model)
        for weight in weights:
            check_rank(weight.name, round(options.rho * weight.rank), (weight.shape[1],), directions=1)
        items = list(batches(inputs.domain, options.samples, inputs.collate, base.device))
        most = round(options.rho * max(weight.rank for weight in weights))
        if all(int((batch["labels"] != -100).sum()) < most for batch in items):
            raise ALoRAError(
                f"eva takes up to {most} directions from the tokens that are trained on in a batch of items, which has fewer: "
                "set lora.r or method_options.eva.rho lower, or domain.loss_on to all"
            )
        initialize_lora_eva_weights(model, items, forward_fn=_Forward(_PASSES * len(items)), show_progress_bar=False)
        for weight in adapted_weights(model):
            for parameter in weight.parameters:
                # Where PEFT has changed a rank, it has made the factors anew in the base's dtype.
                parameter.data = parameter.data.to(weight.dtype)
        model.peft_config["default"].init_lora_weights = True
        return Adapter.plain(model)


class _Forward:
    """The forward pass, so many times."""

    def __init__(self, limit: int) -> None:
        self._left = limit

    def __call__(self, model: Any, batch: dict[str, torch.Tensor]) -> Any:
        if self._left == 0:
            raise ALoRAError(
                f"eva's directions did not stand still within {_PASSES} passes over its items: set method_options.eva.samples "
                "higher, or lora.r lower"
            )
        self._left -= 1
        return model(**batch, use_cache=False)


EVA = InputDirections(
    "eva", "PEFT's EVA: starts in the directions that the domain's inputs vary most in", starts_from="fresh"
)
