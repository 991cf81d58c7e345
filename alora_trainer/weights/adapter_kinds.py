"""PEFT has some forty kinds of adapter: one other than LoRA can be neither recorded nor held, and is refused by its name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from peft import LoraConfig
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from alora_trainer.errors import ALoRAError


def refuse_other_kinds(model: nn.Module) -> None:
    """Refuse a model with an adapter that is not LoRA, also beside one that is.

    Raises:
        ALoRAError: there is one; the message names its kind.
    """
    for config in adapter_configs(model):
        # AdaLoRA's configuration is a LoraConfig too, and its layers are LoRA's: neither moves as LoRA does.
        if type(config) is not LoraConfig:
            raise _refusal(str(getattr(config.peft_type, "value", config.peft_type)), type(config).__name__)
    for module in model.modules():
        # Without a configuration in the model (`inject_adapter_in_model`). Token rows may train beside LoRA.
        path = type(module).__module__
        known = path.startswith("peft.tuners.lora.") or not path.startswith("peft.tuners.")
        if isinstance(module, BaseTunerLayer) and not known and not isinstance(module, TrainableTokensLayer):
            raise _refusal(path.split(".")[2].upper(), type(module).__name__)


def adapter_configs(model: nn.Module) -> Iterator[Any]:
    """The configurations of all adapters in a model, whatever is wrapped around it."""
    seen = set()
    for module in model.modules():
        configs = getattr(module, "peft_config", None)
        if isinstance(configs, Mapping):
            for config in configs.values():
                if id(config) not in seen:
                    seen.add(id(config))
                    yield config


def _refusal(kind: str, name: str) -> ALoRAError:
    return ALoRAError(
        f"the model has an adapter of the kind {kind} ({name}), which can be neither recorded nor held: use LoRA "
        "(peft.LoraConfig), or tune the model's own weights without an adapter (full_parameters=True)"
    )
