"""A tiny model with and without LoRA, data and arguments, for tests and for the processes that tests launch."""

from __future__ import annotations

import copy
from typing import Any

import torch

TINY: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "max_position_embeddings": 32,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}


def tiny_llama(**settings: Any) -> Any:
    """A Llama of a few thousand parameters, always the same one; `settings` over its configuration's."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**(TINY | settings)))


# What an adapter of `tiny_mixture`'s experts names.
EXPERT_STACKS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def tiny_mixture(kind: str = "qwen3_moe", **settings: Any) -> Any:
    """A mixture of three experts in one parameter ("qwen3_moe" or "gpt_oss"), of one layer; `settings` as of `tiny_llama`."""
    from transformers import GptOssConfig, GptOssForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    shape = TINY | {"num_hidden_layers": 1, "head_dim": 8, "num_experts_per_tok": 2} | settings
    if kind == "qwen3_moe":
        return Qwen3MoeForCausalLM(Qwen3MoeConfig(**({"num_experts": 3, "moe_intermediate_size": 12} | shape)))
    model = GptOssForCausalLM(GptOssConfig(**({"num_local_experts": 3} | shape)))
    for layer in model.model.layers:
        for parameter in layer.mlp.experts.parameters():
            torch.nn.init.normal_(parameter, std=0.2)  # transformers leaves biases at zero
    return model


def with_lora(base: Any, *, dtype: torch.dtype = torch.float32, moved: bool = False, **lora: Any) -> Any:
    """A copy of `base` with a LoRA adapter; `moved` gives the factors random values."""
    from peft import LoraConfig, get_peft_model

    settings: dict[str, Any] = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]} | lora
    torch.manual_seed(1)
    model = get_peft_model(copy.deepcopy(base).to(dtype), LoraConfig(**settings)).to(dtype)
    if moved:
        move_factors(model, 0.2)
    return model


def move_factors(model: Any, scale: float, seed: int = 7) -> None:
    """Add random values to every LoRA factor."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale
            parameter.data += noise.to(parameter.dtype)


def token_rows(items: int = 24, length: int = 8, seed: int = 3) -> Any:
    """A data set of random token sequences; some labels are masked."""
    from datasets import Dataset

    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 40, (items, length), generator=generator)
    labels = ids.clone()
    masked = torch.rand(items, length, generator=generator) < 0.3
    labels[masked] = -100
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})


def quiet_arguments(output_dir: str, **settings: Any) -> Any:
    """Quiet CPU arguments with a constant learning rate."""
    from transformers import TrainingArguments

    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "max_steps": 4,
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    return TrainingArguments(output_dir, **(defaults | settings))
