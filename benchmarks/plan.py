"""Is `alora plan` right? Its peaks beside those that whole trainings reach by the allocator's own count.

    python benchmarks/plan.py [--device cuda] [--output_dir results/benchmarks]

Each case loads a Llama of random weights, records, and tunes with the recorded map held, in this process; the plan is made from
the configuration alone. Writes plan-DEVICE.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from measuring import machine, peak_bytes
from peft import get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from alora_trainer.experiment.recipe.plan.devices import DEVICES, Device
from alora_trainer.experiment.recipe.plan.estimate import plan_recipe
from alora_trainer.experiment.recipe.plan.models import model_config
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.trainer.config import ALoRAConfig
from alora_trainer.trainer.mixin import ALoRATrainer

SMALL = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 8}
WIDE = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 2, "num_attention_heads": 12}
# name: (shape, vocabulary, batch, length, dtype, settings of both trainings)
CASES: dict[str, tuple[dict[str, int], int, int, int, str, dict[str, Any]]] = {
    "small": (SMALL, 4096, 8, 128, "float32", {}),
    "small, long": (SMALL, 4096, 2, 512, "float32", {}),
    "small, checkpointing": (SMALL, 4096, 8, 128, "float32", {"gradient_checkpointing": True}),
    "small, bfloat16": (SMALL, 4096, 8, 128, "bfloat16", {}),
    "small, mixed precision": (SMALL, 4096, 8, 128, "float32", {"bf16": True}),
    "small, accumulation": (SMALL, 4096, 4, 128, "float32", {"gradient_accumulation_steps": 2}),
    "small, large vocabulary": (SMALL, 32000, 4, 128, "float32", {}),
    "wide": (WIDE, 4096, 4, 128, "float32", {}),
}


def write_recipe(folder: Path, case: str, device: str) -> Recipe:
    shape, vocabulary, batch, length, dtype, settings = CASES[case]
    config = LlamaConfig(vocab_size=vocabulary, max_position_embeddings=1024, tie_word_embeddings=True, **shape)
    config.save_pretrained(str(folder / "model"))
    training = {"max_steps": 3, "per_device_train_batch_size": batch, "save_strategy": "no", "use_cpu": device == "cpu"}
    recipe = {
        "methods": ["base", "lora", "alora"],
        "model": {"path": "model", "dtype": dtype},
        "lora": {"r": 8, "lora_alpha": 32, "target_modules": "all-linear"},
        "general": {
            "train": "none.jsonl",
            "test": {"none": "none.jsonl"},
            "block_length": length,
            "train_tokens": 65536,
        },
        "domain": {"task": "sciq", "max_length": length},
        "record": training | settings,
        "tune": training | settings,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return load_recipe(path)


def train(recipe: Recipe, section: str, device: str, importance: Any) -> Any:
    """One training from the loading of the model on; the map that there is afterwards."""
    config = model_config(recipe)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, recipe.model.dtype))
    length = recipe.general.block_length
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(0, config.vocab_size, (24, length)).tolist()]

    def collate(batch: list[Any]) -> dict[str, torch.Tensor]:
        tensors = {key: torch.tensor([row[key] for row in batch]) for key in ("input_ids", "labels")}
        return tensors | {"attention_mask": torch.ones_like(tensors["input_ids"])}

    trainer = ALoRATrainer(
        get_peft_model(model.to(device), recipe.lora_config()),
        recipe.training_arguments(section, recipe.base / "out"),
        train_dataset=rows,
        data_collator=collate,
        importance=importance,
        alora=ALoRAConfig(record="path", lam=0.0) if importance is None else ALoRAConfig(lam=0.1),
    )
    trainer.train()
    return trainer.importance


def measure(case: str, device: str) -> dict[str, Any]:
    """Planned and measured peaks of both stages, in bytes, and their ratio."""
    kept: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        recipe = write_recipe(Path(folder), case, device)
        where = Device("host", 1e11, 1e10, 1 << 40, overhead_bytes=0, host=True) if device == "cpu" else DEVICES["H100"]
        plan = plan_recipe(recipe, replace(where, overhead_bytes=0))
        planned = {stage.name: stage.held.total for stage in plan.stages}
        recorded = peak_bytes(device, lambda: kept.update(map=train(recipe, "record", device, None)))
        held = peak_bytes(device, lambda: train(recipe, "tune", device, kept["map"]))
        if device == "cpu":
            planned["tune alora"] -= plan.memory.omega_bytes("float32")  # the map was there before
    pairs = {"record": (planned["record"], recorded), "tune alora": (planned["tune alora"], held)}
    return {
        name: {"planned_bytes": ours, "measured_bytes": theirs, "planned_over_measured": ours / theirs}
        for name, (ours, theirs) in pairs.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--cases", default=None, help="some of them, parted by semicolons")
    parser.add_argument("--output_dir", type=Path, default=Path("results/benchmarks"))
    options = parser.parse_args()
    chosen = [case for case in CASES if options.cases is None or case in options.cases.split(";")]
    options.output_dir.mkdir(parents=True, exist_ok=True)
    path = options.output_dir / f"plan-{options.device}.json"
    report: dict[str, Any] = {"schema": 1, "machine": machine(options.device), "cases": {}}
    for case in chosen:
        report["cases"][case] = measure(case, options.device)
        path.write_text(json.dumps(report, indent=2) + "\n")
        for stage, values in report["cases"][case].items():
            print(f"{case}, {stage}: planned over measured {values['planned_over_measured']:.3f}", flush=True)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
