"""What the storage formats of importance lose, along the movements that a real stage B made, and what they weigh.

    alora run RECIPE --output_dir RUN
    python benchmarks/storage.py RUN [--output_dir results/benchmarks] [--runs FORMAT=RUN ...]

For every format: bytes an element, and the relative error of the penalty and of its gradient at the adapters of the run's
checkpoints, against the float32 map. ``--runs`` adds the results of whole runs whose map was converted to a format
(``--importance`` of `alora tune`). Writes storage-NAME.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from alora_trainer import ImportanceMap
from alora_trainer.adapted import adapted_weights
from alora_trainer.penalty import QuadraticPenalty
from alora_trainer.recipe import load_recipe

FORMATS = ("float32", "bfloat16", "log8", "factored")


def adapters(run: Path) -> dict[str, Path]:
    """Every adapter that stage B left behind: of each method, at each checkpoint and at the end."""
    found = {}
    for method in ("lora_ab", "alora"):
        folders = [*sorted((run / method / "checkpoints").glob("checkpoint-*")), run / method / "adapter"]
        found |= {f"{method}/{folder.name}": folder for folder in folders if (folder / "adapter_config.json").exists()}
    return found


def penalty_of(base: Any, folder: Path, importance: ImportanceMap) -> tuple[float, torch.Tensor]:
    """Value and flattened gradient of the penalty (lambda 1, l2 layer weights, normalised) at an adapter."""
    model = PeftModel.from_pretrained(base, str(folder), is_trainable=True)
    step = QuadraticPenalty(adapted_weights(model), importance, lam=1.0).evaluate()
    gradient = torch.cat([part.flatten() for pair in step.gradients.values() for part in pair])
    model.unload()
    return float(step.value), gradient.double()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--output_dir", type=Path, default=Path("results/benchmarks"))
    parser.add_argument("--runs", nargs="*", default=[], metavar="FORMAT=RUN")
    options = parser.parse_args()
    recipe = load_recipe(options.run / "recipe.yaml", {})
    base = AutoModelForCausalLM.from_pretrained(recipe.model_source, dtype=torch.float32)
    exact = ImportanceMap.from_pretrained(options.run / "record" / "map")
    report: dict[str, Any] = {"schema": 1, "recipe": recipe.name, "elements": exact.elements, "formats": {}}
    reference = {name: penalty_of(base, folder, exact) for name, folder in adapters(options.run).items()}
    for storage in FORMATS:
        importance = exact.convert(storage)
        errors = {}
        for name, folder in adapters(options.run).items():
            value, gradient = penalty_of(base, folder, importance)
            true_value, true_gradient = reference[name]
            errors[name] = {
                "value": abs(value - true_value) / true_value,
                "gradient": float((gradient - true_gradient).norm() / true_gradient.norm()),
                "gradient_cosine": float(gradient @ true_gradient / gradient.norm() / true_gradient.norm()),
            }
        report["formats"][storage] = {"bytes_an_element": importance.nbytes / exact.elements, "errors": errors}
        worst = {key: max(error[key] for error in errors.values()) for key in ("value", "gradient")}
        print(f"{storage}: {importance.nbytes / exact.elements:.3f} bytes an element, worst errors {worst}")
    for entry in options.runs:
        storage, _, run = entry.partition("=")
        result = json.loads((Path(run) / "results.json").read_text())["methods"]["alora"]
        report["formats"][storage]["whole_run"] = {
            "general_token_perplexity": result["general"]["token_perplexity"],
            "tasks": {task: {key: scores[key] for key in ("acc", "acc_stderr")} for task, scores in result["tasks"].items()},
        }
    options.output_dir.mkdir(parents=True, exist_ok=True)
    path = options.output_dir / f"storage-{recipe.name}.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
