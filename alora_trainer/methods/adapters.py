"""The adapter that a method trains: plain LoRA as the recipe says, LoRA on the MLP alone, or PEFT's CorDA and OSF."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel, set_seed
from transformers.pytorch_utils import Conv1D

from alora_trainer.errors import ALoRAError
from alora_trainer.methods.method import Method
from alora_trainer.methods.options import CordaOptions, MethodOptions, OSFOptions

# What the models of transformers call their feed-forward part.
_MLP = re.compile(r"(^|\.)(mlp|feed_forward|ffn|ff|fc_layers)(\.|$)")


@dataclass(frozen=True)
class Adapter:
    """A model with a method's adapter on it, and how to save that as something that PEFT loads onto the base model."""

    model: Any
    save: Callable[[Path], None]

    @classmethod
    def plain(cls, model: Any) -> Adapter:
        """One that PEFT saves as it is."""
        return cls(model, lambda folder: model.save_pretrained(str(folder)))


def attach_adapter(
    method: Method,
    options: MethodOptions,
    base: PreTrainedModel,
    config: LoraConfig,
    *,
    seed: int,
    folder: Path,
    general: Any = None,
    collate: Callable[[list[Any]], Mapping[str, torch.Tensor]] | None = None,
) -> Adapter:
    """A new adapter of the method's kind.

    Args:
        method, options: what to make.
        base: the base model, freshly loaded; it is changed.
        config: the recipe's LoRA.
        seed: of the adapter's random values.
        folder: where an adapter that needs its beginning to be saved keeps it.
        general, collate: rows of general text and what makes a batch of them, for CorDA.

    Raises:
        ALoRAError: the adapter does not fit the model.
    """
    set_seed(seed)
    if method.adapter in ("corda", "osf") and getattr(base, "is_quantized", False):
        raise ALoRAError(
            f"{method.name} takes the base weights apart, which are quantised here: leave model.quantization out"
        )
    try:
        if method.adapter == "corda":
            assert collate is not None
            return _corda(base, config, options.own, general, collate, folder)
        if method.adapter == "osf":
            return Adapter.plain(get_peft_model(base, _osf_config(config, options.own)))
        if method.adapter == "mlp_lora":
            config.target_modules = mlp_layers(base)
        return Adapter.plain(get_peft_model(base, config))
    except (TypeError, ValueError) as error:
        if isinstance(error, ALoRAError):
            raise
        raise ALoRAError(f"the adapter does not fit the model: {str(error).strip().splitlines()[0]}") from error


def mlp_layers(model: nn.Module) -> set[str]:
    """Names of the linear layers in the model's feed-forward parts.

    Raises:
        ALoRAError: there are none that this knows.
    """
    names = {
        name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D)) and _MLP.search(name)
    }
    if not names:
        raise ALoRAError("mlp_only finds no MLP in this model: use the method lora with lora.target_modules instead")
    return names


def _osf_config(config: LoraConfig, options: OSFOptions) -> Any:
    from peft import OSFConfig

    return OSFConfig(
        effective_rank=options.effective_rank, target_modules=config.target_modules, task_type=config.task_type
    )


def _corda(
    base: PreTrainedModel,
    config: LoraConfig,
    options: CordaOptions,
    general: Any,
    collate: Callable[[list[Any]], Mapping[str, torch.Tensor]],
    folder: Path,
) -> Adapter:
    """CorDA takes a part of each weight out of the base and trains it as the adapter; saved is the difference, of rank 2 r."""
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    config.init_lora_weights = "corda"
    config.corda_config = CordaConfig(corda_method="kpm")
    if config.target_modules == "all-linear":
        # preprocess_corda does not know PEFT's own abbreviation.
        config.target_modules = _all_linear(base)
    rows = min(options.samples, len(general))

    def read_general_text() -> None:
        for number in range(rows):  # one at a time: the hooks of PEFT expect it
            batch = collate([general[number]])
            base(input_ids=batch["input_ids"].to(base.device))

    preprocess_corda(base, config, run_model=read_general_text)
    model: Any = get_peft_model(base, config)
    model.peft_config["default"].init_lora_weights = True
    beginning = folder / "corda_beginning"
    model.save_pretrained(str(beginning))

    def save(target: Path) -> None:
        model.save_pretrained(str(target), path_initial_model_for_weight_conversion=str(beginning))

    return Adapter(model, save)


def _all_linear(model: PreTrainedModel) -> set[str]:
    """Names of all linear layers but the output head."""
    head = model.get_output_embeddings()
    return {
        name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D)) and module is not head
    }
