"""A small importance map without any training, for a tiny Llama; and its files changed as a stranger might change them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from alora_trainer import ImportanceMap
from alora_trainer.artefact.config_file import _digest
from alora_trainer.artefact.files import CONFIG_FILE
from alora_trainer.importance.kinds.elementwise import ELEMENTWISE
from alora_trainer.importance.kinds.formats import FORMATS
from alora_trainer.importance.origin import ImportanceInfo
from alora_trainer.weights.reference import Reference
from alora_trainer.weights.theta import AdapterTheta

# What importance that is a matrix of numbers can be kept as.
ELEMENTWISE_FORMATS = tuple(name for name, format in FORMATS.items() if format.kind == ELEMENTWISE)
BLOCKS, RANK, ALPHA = 2, 3, 6
SHAPES = {"q_proj": (16, 16), "v_proj": (8, 16)}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def make_map(*, blocks: int = BLOCKS, values: int = 0, **info: Any) -> ImportanceMap:
    """Random importance and factors, by `values`; the facts are fixed but for those in `info`."""
    from peft import LoraConfig

    generator = torch.Generator().manual_seed(values)
    shapes = {f"model.layers.{b}.self_attn.{kind}": shape for b in range(blocks) for kind, shape in SHAPES.items()}
    omega = {name: torch.rand(shape, generator=generator) ** 4 for name, shape in shapes.items()}
    reference, state = {}, {}
    for name, (rows, columns) in shapes.items():
        a = torch.randn(RANK, columns, generator=generator)
        b = torch.randn(rows, RANK, generator=generator) * 0.1
        reference[name] = Reference(a, b, ALPHA / RANK)
        state |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
    facts: dict[str, Any] = {
        "base_model": "tiny-org/tiny-llama",
        "base_revision": COMMIT,
        "estimator": "path",
        "xi": 1e-3,
        "steps": 40,
        "tokens": 12_800,
        "optimizer": "adamw_torch",
        "learning_rate": 8e-4,
        "seed": 3,
        "data": {"sources": [{"hub": "tiny-org/books", "split": "train", "revision": "main"}], "block_length": 16},
        "cost": {"seconds": 75.2, "peak_bytes": 1_300_000_000, "device": "one x86_64 cpu"},
        "versions": {"python": "3.11.9", "torch": "2.13.0"},
    }
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    config.base_model_name_or_path = "tiny-org/tiny-llama"
    return ImportanceMap(omega, AdapterTheta(reference, state, config), info=ImportanceInfo(**(facts | info)))


def change_config(folder: Path, change: Callable[[dict[str, Any]], Any], *, honest: bool = True) -> None:
    """Let `change` alter the config; `honest` gives it the checksum that it then needs, as a forger would."""
    path = folder / CONFIG_FILE
    content = json.loads(path.read_text())
    change(content)
    if honest:
        content["sha256"] = _digest({key: value for key, value in content.items() if key != "sha256"})
    path.write_text(json.dumps(content))
