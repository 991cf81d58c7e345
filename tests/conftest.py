"""Tiny models and data, built once and copied: the tests train real trainers on them."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.hub_server.server import HubServer

ANN, BOB = "hf_tokenOfAnn", "hf_tokenOfBob"
# The Hub that this process and all that it starts see is a server of our own: libraries read its address when they are
# imported, so it runs from the beginning. What is asked of it is answered at once, and nothing leaves this machine.
HUB = HubServer({ANN: "ann:tiny-org", BOB: "bob"})
HUB.__enter__()
_HOME = tempfile.TemporaryDirectory(prefix="hub-home-", ignore_cleanup_errors=True)
os.environ.update(HUB.environment(_HOME.name))
os.environ.pop("HF_TOKEN", None)

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real models and data, where there is one."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared (real models and data), which is not here")
    return SHARED


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The Hub, empty, with a cache of the test's own, and Ann (who may write to tiny-org) logged in."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setenv("HF_TOKEN", ANN)
    HUB.reset()
    yield HUB
    HUB.reset()


@pytest.fixture(scope="session")
def _tiny_llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=40,
        max_position_embeddings=32,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    return LlamaForCausalLM(config)


@pytest.fixture
def lora_model(_tiny_llama: Any) -> Callable[..., Any]:
    """`lora_model(dtype=..., moved=..., **lora)`: a fresh tiny Llama with a LoRA adapter; `moved` gives B random values."""
    from peft import LoraConfig, get_peft_model

    def build(*, dtype: torch.dtype = torch.float32, moved: bool = False, **lora: Any) -> Any:
        settings: dict[str, Any] = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]} | lora
        torch.manual_seed(1)
        model = get_peft_model(copy.deepcopy(_tiny_llama).to(dtype), LoraConfig(**settings)).to(dtype)
        if moved:
            move_factors(model, 0.2)
        return model

    return build


def move_factors(model: Any, scale: float, seed: int = 7) -> None:
    """Add random values to every LoRA factor."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale
            parameter.data += noise.to(parameter.dtype)


@pytest.fixture
def token_data() -> Callable[..., Any]:
    """`token_data(items, length)`: a data set of random token sequences; some labels are masked."""
    from datasets import Dataset

    def build(items: int = 24, length: int = 8, seed: int = 3) -> Any:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(2, 40, (items, length), generator=generator)
        labels = ids.clone()
        masked = torch.rand(items, length, generator=generator) < 0.3
        labels[masked] = -100
        return Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})

    return build


@pytest.fixture
def training_arguments(tmp_path: Path) -> Callable[..., Any]:
    """`training_arguments(**settings)`: quiet CPU arguments with a constant learning rate."""
    from transformers import TrainingArguments

    def build(**settings: Any) -> Any:
        defaults: dict[str, Any] = {
            "output_dir": str(tmp_path / "out"),
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
        return TrainingArguments(**(defaults | settings))

    return build
