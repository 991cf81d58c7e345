"""What the storage formats of importance weigh, what they lose along real movements, and what that does to whole runs.

    python benchmarks/storage.py [--recipe recipes/study-sciq.yaml] [--seeds 3] [--workers 2]

For every seed a stage A, and from it LoRA with nothing held and ALoRA with the importance held in each format, at one lambda.
Reported for every format: bytes an element; the relative error of the penalty and of its gradient, against float32, at all
adapters that the first seed's trainings left behind (checkpoints and ends); general perplexity and accuracy of the whole
runs. Writes results/studies/storage-RECIPE.json. What was finished in runs/ is not done again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from studies import Case, Study, rise, run_study, spread, write_report
from transformers import AutoModelForCausalLM

from alora_trainer.artefact.importance_map import ImportanceMap
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.penalty import QuadraticPenalty
from alora_trainer.weights.adapted import adapted_weights

FORMATS = ("float32", "bfloat16", "log8", "factored")


def name_of(storage: str, lam: str) -> str:
    """The case's name; float32 is what other studies have at the same lambda."""
    return f"coupled-lam-{lam}" if storage == "float32" else f"{storage}-lam-{lam}"


def cases_of(seeds: int, lam: str) -> list[Case]:
    cases = []
    for seed in range(seeds):
        cases.append(Case("lora_ab", seed, "lora_ab"))
        for storage in FORMATS:
            settings = {"alora.lam": lam, "alora.application": "coupled"}
            settings |= {} if storage == "float32" else {"alora.storage": storage}
            cases.append(Case(name_of(storage, lam), seed, "alora", settings))
    return cases


def left_behind(study: Study, cases: list[Case]) -> dict[str, Path]:
    """Every adapter of the first seed's trainings, at each checkpoint and at the end."""
    found = {}
    for case in cases:
        if case.seed != 0:
            continue
        folder = study.training_folder(case)
        for adapter in (*sorted((folder / "checkpoints").glob("checkpoint-*")), folder / "adapter"):
            if (adapter / "adapter_config.json").exists():
                found[f"{case.name}/{adapter.name}"] = adapter
    return found


def penalty_of(base: Any, adapter: Path, importance: ImportanceMap) -> tuple[float, torch.Tensor]:
    """Value and flattened gradient of the penalty (lambda 1, l2 layer weights, normalised) at an adapter."""
    model = PeftModel.from_pretrained(base, str(adapter), is_trainable=True)
    step = QuadraticPenalty(adapted_weights(model), importance, lam=1.0).evaluate()
    gradient = torch.cat([part.flatten() for pair in step.gradients.values() for part in pair])
    model.unload()
    return float(step.value), gradient.double()


def errors_of(study: Study, cases: list[Case]) -> dict[str, dict[str, Any]]:
    """By format: bytes an element, and the errors at every adapter."""
    recipe = load_recipe(study.recipe, study.overrides(0, {}))
    base = AutoModelForCausalLM.from_pretrained(recipe.model_source, dtype=torch.float32)
    exact = ImportanceMap.from_pretrained(study.map_folder(0))
    adapters = left_behind(study, cases)
    reference = {name: penalty_of(base, adapter, exact) for name, adapter in adapters.items()}
    report = {}
    for storage in FORMATS:
        importance = exact.convert(storage)
        errors = {}
        for name, adapter in adapters.items():
            value, gradient = penalty_of(base, adapter, importance)
            true_value, true_gradient = reference[name]
            errors[name] = {
                "value": abs(value - true_value) / true_value,
                "gradient": float((gradient - true_gradient).norm() / true_gradient.norm()),
                "gradient_cosine": float(gradient @ true_gradient / gradient.norm() / true_gradient.norm()),
            }
        report[storage] = {"bytes_an_element": importance.nbytes / exact.elements, "errors": errors}
    return report


def summarize(entries: list[dict[str, Any]], errors: Mapping[str, Mapping[str, Any]], lam: str) -> list[dict[str, Any]]:
    rows = []
    for storage in (None, *FORMATS):
        name = "lora_ab" if storage is None else name_of(storage, lam)
        group = [entry for entry in entries if entry["name"] == name]
        row: dict[str, Any] = {
            "format": storage,
            "rise": spread(map(rise, group)),
            "perplexity": spread(entry["perplexity"] for entry in group),
            "accuracy": spread(entry["accuracy"] for entry in group),
        }
        if storage is not None:
            found = errors[storage]["errors"].values()
            row |= {
                "bytes_an_element": errors[storage]["bytes_an_element"],
                "largest_error": {key: max(error[key] for error in found) for key in ("value", "gradient")},
            }
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", type=Path, default=Path("recipes/study-sciq.yaml"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lam", default="0.03")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--test_items", type=int, default=500)
    parser.add_argument("--runs", type=Path, default=Path("runs/studies"))
    parser.add_argument("--output_dir", type=Path, default=Path("results/studies"))
    options = parser.parse_args()
    study = Study(options.recipe, {"domain.test_items": str(options.test_items)}, options.runs / options.recipe.stem)
    cases = cases_of(options.seeds, options.lam)
    entries = run_study(study, cases, options.workers)
    errors = errors_of(study, cases)
    command = f"python benchmarks/storage.py --recipe {options.recipe} --seeds {options.seeds} --lam {options.lam}"
    report = {"summary": summarize(entries, errors, options.lam), "formats": errors, "runs": entries}
    write_report(options.output_dir / f"storage-{options.recipe.stem}.json", study, command, report)


if __name__ == "__main__":
    main()
