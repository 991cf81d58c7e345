"""How a run is done: where, with which shapes, and how often what is compared takes turns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

# As the models' own configurations on the Hub have them.
LLAMA_3B: dict[str, Any] = {
    "vocab_size": 128256, "hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24,
    "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 8192, "tie_word_embeddings": True,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
}  # fmt: skip
LLAMA_8B: dict[str, Any] = LLAMA_3B | {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 14336,
    "tie_word_embeddings": False,
}  # fmt: skip
GPT_J_6B: dict[str, Any] = {
    "vocab_size": 50400, "n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64, "n_positions": 2048,
}  # fmt: skip
# The board's small model.
BASE_5M: dict[str, Any] = {
    "vocab_size": 4096, "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 4,
    "intermediate_size": 704, "tie_word_embeddings": True, "max_position_embeddings": 512,
}  # fmt: skip
_TINY_LLAMA: dict[str, Any] = {
    "vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "intermediate_size": 128, "tie_word_embeddings": True, "max_position_embeddings": 128,
}  # fmt: skip
_TINY_GPT_J: dict[str, Any] = {
    "vocab_size": 256, "n_embd": 64, "n_layer": 1, "n_head": 4, "rotary_dim": 8, "n_positions": 128,
    "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip

LLAMA, GPT_J, EIGHT_BILLION, SMALL = "Llama-3.2-3B", "GPT-J-6B", "Llama-3.1-8B", "base-5m"
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    LLAMA: ("llama", LLAMA_3B),
    EIGHT_BILLION: ("llama", LLAMA_8B),
    SMALL: ("llama", BASE_5M),
    GPT_J: ("gptj", GPT_J_6B),
}
_TINY = {"llama": _TINY_LLAMA, "gptj": _TINY_GPT_J}
ATTENTION = ["q_proj", "v_proj"]
TARGETS: dict[str, dict[str, list[str]]] = {
    "llama": {"q,v": ATTENTION, "all linear": [*ATTENTION, "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]},
    "gptj": {"q,v": ATTENTION, "all linear": [*ATTENTION, "k_proj", "out_proj", "fc_in", "fc_out"]},
}
RANK, ALPHA = 8, 32


@dataclass(frozen=True)
class Settings:
    """Where and how large.

    Attributes:
        device: "cuda" or "cpu".
        quick: tiny shapes and few rounds, to see that all of it runs.
    """

    device: str
    quick: bool

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"

    @property
    def rounds(self) -> int:
        """How often what is compared takes turns."""
        return 1 if self.quick else 5

    @property
    def dtype(self) -> torch.dtype:
        """Of base weights."""
        return torch.bfloat16 if self.cuda else torch.float32

    @property
    def batch(self) -> tuple[int, int]:
        """Samples and tokens of each: the most that is tried."""
        return (2, 16) if self.quick else (20, 512)

    def shape(self, model: str) -> tuple[str, dict[str, Any]]:
        """The kind of a model and its configuration: the true one, or a tiny one of its kind."""
        kind, true = SHAPES[model]
        return kind, _TINY[kind] if self.quick else true
