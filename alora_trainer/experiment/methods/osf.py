"""PEFT's orthogonal subspace fine-tuning: the leading singular directions of each weight are frozen (docs/methods/osf.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft import LoraConfig, OSFConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from transformers import PreTrainedModel

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods.method import Adapter, AdapterInputs, Method
from alora_trainer.weights.adapter_settings import first_given

# What says which weights are trained, and PEFT's OSF does not know, or not load again.
_NOT_OSF = (
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "target_parameters",
    "trainable_token_indices",
    "modules_to_save",
    "bias",
    "lora_bias",
)


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

    def check_config(self, config: LoraConfig) -> None:
        if name := first_given(config, _NOT_OSF):
            raise ALoRAError(
                f"lora.{name}: PEFT's OSF has no such setting, and {self.name} would train other weights than it says: "
                "leave it out, or list the modules in lora.target_modules"
            )

    def attach(self, base: PreTrainedModel, config: LoraConfig, inputs: AdapterInputs) -> Adapter:
        osf: Any = OSFConfig(
            effective_rank=inputs.options.effective_rank,
            target_modules=config.target_modules,
            task_type=config.task_type,
        )
        model = get_peft_model(base, osf)
        _check_all_are_there(model)
        return Adapter.plain(model)


def _check_all_are_there(model: Any) -> None:
    """Raises ALoRAError for a targeted module that PEFT's OSF has passed over without a word: it knows `nn.Linear` alone."""
    config = model.peft_config["default"]
    for name, module in model.base_model.model.named_modules():
        if check_target_module_exists(config, name) and not isinstance(module, BaseTunerLayer):
            raise ALoRAError(
                f"PEFT's OSF knows linear layers, and {name} is a {type(module).__name__}: leave it out of lora.target_modules"
            )


OSF = OrthogonalSubspace("osf", "PEFT's orthogonal subspace fine-tuning", starts_from="fresh")
