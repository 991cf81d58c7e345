"""The models that the benchmarks run on: true shapes with random weights."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

ATTENTION = ["q_proj", "v_proj"]
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CPU_SHAPE = {"hidden_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 16, "intermediate_size": 2816}
LLAMA_3B = {
    "hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8,
    "intermediate_size": 8192,
}  # fmt: skip
# GPT-J's own layers are not Llama's; its q and v are 4096 x 4096 in 28 layers, and this has as many parameters in all.
GPT_J = {"hidden_size": 4096, "num_hidden_layers": 28, "num_attention_heads": 16, "intermediate_size": 10922}
QV_WEIGHTS = {"Llama-3.2-3B q,v": [(3072, 3072), (1024, 3072)] * 28, "GPT-J-6B q,v": [(4096, 4096)] * 56}


def lora_model(shape: dict[str, int], *, length: int, rank: int, targets: list[str], device: str) -> Any:
    """A Llama of `shape` with a LoRA adapter, float32 on a CPU and bfloat16 on a GPU, alpha four times the rank."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with torch.device(device):
        base = LlamaForCausalLM(LlamaConfig(vocab_size=4096, max_position_embeddings=length, **shape)).to(dtype)
    return get_peft_model(base, LoraConfig(r=rank, lora_alpha=4 * rank, target_modules=targets))
