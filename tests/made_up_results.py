"""Results as runs leave them, made up from a formula, so that a report can be tested without a training."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from alora_trainer.evaluation.items import pack_correct

ITEMS = 400
LAYERS = 6
KINDS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj")
# method -> (general perplexity, accuracy, the settings it has of its own)
METHODS: dict[str, tuple[float, float, dict[str, Any]]] = {
    "base": (38.0, 0.39, {}),
    "lora": (51.5, 0.57, {}),
    "lora_ab": (51.9, 0.572, {}),
    "alora@lam=0.01": (44.5, 0.545, {"protecting.lam": 0.01}),
    "alora@lam=0.1": (40.6, 0.51, {"protecting.lam": 0.1}),
    "alora@lam=1.0": (38.6, 0.45, {"protecting.lam": 1.0}),
}


def weight_names() -> list[str]:
    return [f"model.layers.{layer}.{kind}" for layer in range(LAYERS) for kind in KINDS]


def made_up_run(seed: int, task: str = "sciq", methods: dict[str, Any] | None = None) -> dict[str, Any]:
    """What results.json of a run with this seed may hold."""
    chance = random.Random(f"{seed}:{task}")
    items = [random.Random(f"{task}:{item}").random() for item in range(ITEMS)]  # how hard each is, for all alike
    entries = {name: _entry(name, *figures, items, task, chance) for name, figures in (methods or METHODS).items()}
    recipe = {"name": "made-up", "seed": seed, "model": {"path": "models/small"}, "alora": {"lam": 0.1}}
    overlap = {"run_words": 13, "items": ITEMS, "long_enough": 120, "overlapping": 3, "examples": [], "documents": 900}
    return {
        "schema": 1,
        "recipe": recipe,
        "environment": {"python": "3.11", "torch": "2.13", "device": "cpu"},
        "definitions": {"acc": "share of the items whose right choice is the likeliest"},
        "overlap": overlap,
        "methods": entries,
    }


def write_sweep(folder: Path, seeds: int = 3, **settings: Any) -> Path:
    for seed in range(seeds):
        (folder / f"seed-{seed}").mkdir(parents=True)
        (folder / f"seed-{seed}" / "results.json").write_text(json.dumps(made_up_run(seed, **settings)))
    return folder


def _entry(
    name: str,
    perplexity: float,
    accuracy: float,
    settings: dict[str, Any],
    items: list[float],
    task: str,
    chance: random.Random,
) -> dict[str, Any]:
    base = name == "base"
    noise = 0.0 if base else chance.gauss(0, 1)
    perplexity += 0.4 * noise
    right = [hard + chance.gauss(0, 0.0 if base else 0.12) < accuracy for hard in items]
    share = sum(right) / len(right)
    entry: dict[str, Any] = {
        "general": {
            "token_perplexity": perplexity,
            "kl_to_base": {"nats_per_token": 0.0 if base else 0.02 * (perplexity - 37.5), "tokens": 6000},
        },
        "tasks": {
            task: {
                "items": len(items),
                "acc": share,
                "acc_stderr": math.sqrt(share * (1 - share) / (len(items) - 1)),
                "acc_norm": share,
                "ece": 0.05 + 0.1 * chance.random(),
                "correct": pack_correct(right),
                "items_digest": f"digest of {task}",
            }
        },
        "tokenizer": {"class": "Fast", "vocab_size": 4096, "vocab_sha256": "0" * 64},
        "train": {"seconds": 0.0 if base else 90 + 5 * noise, "peak_bytes": 0 if base else 2**30 + 2**26 * noise},
        "settings": dict(settings),
    }
    if base:
        return entry
    method, lam = name.partition("@")[0], settings.get("protecting.lam", 0.0)
    steps = list(range(10, 160, 10))
    tasks = [3 + 2.4 * math.exp(-step / 40) + 0.25 * lam + 0.03 * chance.gauss(0, 1) for step in steps]
    penalty = [0.05 * lam**0.4 * (1 - math.exp(-step / 30)) + 1e-4 for step in steps]
    training: dict[str, Any] = {"step": steps, "loss": tasks}
    if method == "alora":
        training = {
            "step": steps,
            "loss": [one + other for one, other in zip(tasks, penalty, strict=True)],
            "ce_loss": tasks,
            "penalty": penalty,
        }
    curve = {
        "step": [0, 50, 100, 150],
        "general_perplexity": [38 + (perplexity - 38) * part for part in (0, 0.5, 0.8, 1)],
        "domain_accuracy": [0.39 + (accuracy - 0.39) * part for part in (0, 0.6, 0.9, 1)],
    }
    entry["train"]["history"] = {"training": training, "curve": curve}
    entry["train"]["drift"] = {
        weight: (1 + 0.2 * (place % LAYERS)) / (1 + 4 * lam) for place, weight in enumerate(weight_names())
    }
    if method != "lora":
        entry["record"] = {"seconds": 60.0, "peak_bytes": 2**30}
        entry["layer_norms"] = {weight: math.exp(0.2 * place - 3) for place, weight in enumerate(weight_names())}
    return entry
