"""How well the cheap estimators rank elements and layers as the exact one does, on a real model and real text.

    python benchmarks/estimators.py RECIPE [--seeds 0,1,2] [--steps 150] [--output_dir results/benchmarks]

One training on the recipe's general text, watched by all recorders at once: they see the same steps. Reports, per
layer and over all: Spearman's rank correlation with the exact Omega, the overlap of the 1 % most important elements, and the
rank correlation of the layers' norms. Writes estimators.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from alora_trainer.data.general import pack_general_text
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.importance.recording.recorder import Recorder
from alora_trainer.weights.adapted import adapted_weights
from alora_trainer.weights.trained_weight import learning_rates

ESTIMATORS = ("exact", "projected", "path", "paper")


def record_all(recipe: Recipe, seed: int, steps: int, batch: int) -> dict[str, dict[str, torch.Tensor]]:
    """Omega of every estimator along one training on the recipe's general text."""
    set_seed(seed)
    path = recipe.model_source
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), recipe.lora_config())
    blocks = pack_general_text(
        recipe.general.train,
        tokenizer,
        block_length=recipe.general.block_length,
        max_tokens=steps * batch * recipe.general.block_length,
        seed=seed,
        base=recipe.base,
    )
    rate = float(recipe.record.get("learning_rate", 8e-4))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    weights = adapted_weights(model)
    recorders = {name: Recorder(weights, name, recipe.alora.xi) for name in ESTIMATORS}
    model.train()
    for step in range(min(steps, len(blocks) // batch)):
        ids = torch.tensor(blocks[step * batch : (step + 1) * batch]["input_ids"])
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        for recorder in recorders.values():
            gradients = {w.name: (_gradient(w.parameter_a), _gradient(w.parameter_b)) for w in weights}
            recorder.before_step(gradients, learning_rates(optimizer))
        optimizer.step()
        for recorder in recorders.values():
            recorder.after_step()
    return {name: recorder.finish() for name, recorder in recorders.items()}


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad.float().flatten(1).clone()


def compare(estimate: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Agreement of one estimator's Omega with the exact one's."""
    layers = {name: _agreement(estimate[name].flatten(), omega.flatten()) for name, omega in exact.items()}
    norms = [[float(omega[name].norm()) for name in exact] for omega in (estimate, exact)]
    whole = _agreement(*(torch.cat([omega[name].flatten() for name in exact]) for omega in (estimate, exact)))
    return {**whole, "layer_norms_spearman": float(spearmanr(*norms).statistic), "layers": layers}


def _agreement(estimate: torch.Tensor, exact: torch.Tensor) -> dict[str, float]:
    count = max(1, exact.numel() // 100)
    top = [set(omega.topk(count).indices.tolist()) for omega in (estimate, exact)]
    return {
        "spearman": float(spearmanr(estimate.numpy(), exact.numpy()).statistic),
        "top_1_percent_overlap": len(top[0] & top[1]) / count,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--output_dir", type=Path, default=Path("results/benchmarks"))
    options = parser.parse_args()
    recipe = load_recipe(options.recipe, {})
    seeds = [int(seed) for seed in options.seeds.split(",")]
    runs: dict[str, dict[str, Any]] = {}
    for seed in seeds:
        omega = record_all(recipe, seed, options.steps, options.batch)
        runs[str(seed)] = {name: compare(omega[name], omega["exact"]) for name in ESTIMATORS[1:]}
        print(f"seed {seed}:", {n: {k: v for k, v in r.items() if k != "layers"} for n, r in runs[str(seed)].items()})
    keys = ("spearman", "top_1_percent_overlap", "layer_norms_spearman")
    summary = {
        name: {
            key: {"mean": statistics.mean(values), "min": min(values), "max": max(values)}
            for key in keys
            if (values := [run[name][key] for run in runs.values()])
        }
        for name in ESTIMATORS[1:]
    }
    report = {
        "schema": 1,
        "recipe": recipe.name,
        "steps": options.steps,
        "batch": options.batch,
        "summary": summary,
        "seeds": runs,
    }
    options.output_dir.mkdir(parents=True, exist_ok=True)
    path = options.output_dir / "estimators.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
