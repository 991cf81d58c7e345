"""The model of a plan: its configuration, and the model built from it on the meta device, without any weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods.mlp_only import mlp_layers
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.weights.adapted import AdaptedWeight, adapted_weights

_LLAMA_3 = {
    "model_type": "llama",
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}
# The configurations of the paper's models and of those that the shipped recipes name, as their repositories have them (what
# decides shapes); and how many bytes the repository stores for a parameter.
CONFIGURATIONS: Mapping[str, tuple[dict[str, Any], int]] = {
    "meta-llama/Llama-3.2-1B": (
        _LLAMA_3
        | {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "head_dim": 64,
            "tie_word_embeddings": True,
        },
        2,
    ),
    "meta-llama/Llama-3.2-3B": (
        _LLAMA_3
        | {
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 28,
            "num_attention_heads": 24,
            "tie_word_embeddings": True,
        },
        2,
    ),
    "meta-llama/Llama-3.1-8B": (
        _LLAMA_3
        | {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "tie_word_embeddings": False,
        },
        2,
    ),
    "meta-llama/Llama-3.1-70B": (
        _LLAMA_3
        | {
            "hidden_size": 8192,
            "intermediate_size": 28672,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "tie_word_embeddings": False,
        },
        2,
    ),
    "EleutherAI/gpt-j-6b": (
        {
            "model_type": "gptj",
            "vocab_size": 50400,
            "n_positions": 2048,
            "n_embd": 4096,
            "n_layer": 28,
            "n_head": 16,
            "rotary_dim": 64,
            "activation_function": "gelu_new",
            "bos_token_id": 50256,
            "eos_token_id": 50256,
            "tie_word_embeddings": False,
        },
        4,
    ),
}
CONFIGURATIONS = {
    **CONFIGURATIONS,
    "meta-llama/Llama-3.1-8B-Instruct": CONFIGURATIONS["meta-llama/Llama-3.1-8B"],
    "meta-llama/Llama-3.1-70B-Instruct": CONFIGURATIONS["meta-llama/Llama-3.1-70B"],
    "meta-llama/Llama-3.2-1B-Instruct": CONFIGURATIONS["meta-llama/Llama-3.2-1B"],
    "meta-llama/Llama-3.2-3B-Instruct": CONFIGURATIONS["meta-llama/Llama-3.2-3B"],
    "EleutherAI/gpt-j-6B": CONFIGURATIONS["EleutherAI/gpt-j-6b"],
}


@dataclass(frozen=True)
class PlannedModel:
    """A model with its adapter, on the meta device.

    Attributes:
        model: PEFT's model.
        weights: its adapted weights.
        download_bytes: what fetching it takes; 0 for a local one.
    """

    model: Any
    weights: list[AdaptedWeight]
    download_bytes: int


def model_config(recipe: Recipe, config_file: str | Path | None = None) -> Any:
    """The configuration of the recipe's model, without any network.

    Args:
        recipe: names the model.
        config_file: a config.json to take instead.

    Raises:
        ALoRAError: it is neither local nor in the table.
    """
    if config_file is not None:
        try:
            values = json.loads(Path(config_file).read_text(encoding="utf-8"))
            return AutoConfig.for_model(**values)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ALoRAError(f"{config_file} is no config.json of a model: {error}") from error
    source = recipe.model_source
    if source in CONFIGURATIONS:
        return AutoConfig.for_model(**CONFIGURATIONS[source][0])
    try:
        return AutoConfig.from_pretrained(source, revision=recipe.model.revision, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ALoRAError(
            f"the configuration of {recipe.model.path} is not at hand, and a plan downloads nothing: give its config.json "
            f"with --config FILE (known without: {', '.join(CONFIGURATIONS)})"
        ) from error


def build_model(recipe: Recipe, config: Any, *, mlp_only: bool = False) -> PlannedModel:
    """The model on the meta device, in the recipe's dtype, with the recipe's LoRA on it.

    Raises:
        ALoRAError: the LoRA does not fit the model.
    """
    dtype = _dtype(recipe, config)
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(config, dtype=dtype)
        lora = recipe.lora_config()
        if mlp_only:
            lora.target_modules = mlp_layers(base)
        try:
            model = get_peft_model(base, lora, low_cpu_mem_usage=True)
        except ValueError as error:
            raise ALoRAError(f"lora does not fit the model: {str(error).strip().splitlines()[0]}") from error
    parameters = sum(p.numel() for name, p in model.named_parameters() if "lora_" not in name)
    source = recipe.model_source
    stored = CONFIGURATIONS[source][1] if source in CONFIGURATIONS else dtype.itemsize
    return PlannedModel(model, adapted_weights(model), 0 if Path(source).is_dir() else parameters * stored)


def _dtype(recipe: Recipe, config: Any) -> torch.dtype:
    if recipe.model.dtype != "auto":
        return getattr(torch, recipe.model.dtype)
    dtype = getattr(config, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else torch.bfloat16
