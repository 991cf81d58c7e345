"""Which engine for which size of model: what each GPU holds, by `alora plan`, for 8B and 70B on 1, 8 and 16 GPUs.

    python benchmarks/plan_sizes.py

Nothing is downloaded or trained. LoRA of rank 16 on all linear layers in bfloat16, gradient checkpointing, 4 sequences of 512
tokens on each GPU of 80 GB; curvature in 16 parts. Writes results/benchmarks/plan-sizes.json and prints the table of
docs/launching.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from alora_trainer.experiment.recipe.plan.advice import usable_bytes
from alora_trainer.experiment.recipe.plan.devices import get_device
from alora_trainer.experiment.recipe.plan.estimate import plan_recipe
from alora_trainer.experiment.recipe.plan.sharding import FSDP2, NONE, ZERO3, Sharding
from alora_trainer.experiment.recipe.reading import load_recipe

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes" / "llama-3.1-8b-qlora.yaml"
MODELS = {"8B": "meta-llama/Llama-3.1-8B", "70B": "meta-llama/Llama-3.1-70B"}
ENGINES = ((1, NONE), (8, NONE), (8, FSDP2), (8, ZERO3), (16, FSDP2))
# What is measured first, and then held; and what is recorded in a training of its own.
STAGES = {
    "measure kronecker": "curvature",
    "tune kfac": "held by curvature",
    "record": "recording",
    "tune alora": "held by elements",
}
COMMON = {"methods": "kfac,alora", "alora.omega_device": "device", "alora.storage": "float32", "map.storage": "float32"}
COMMON |= {"curvature.tokens": "100000", "curvature.parts": "16", "curvature.batch_size": "4"}


def measured(model: str) -> list[dict[str, Any]]:
    """Each stage's peak of one GPU, by engine; and with the base in four bits and curvature's sums in the host's memory."""
    cases = [("null", "device", *engine) for engine in ENGINES] + [("nf4", "cpu", 1, NONE)]
    rows, memory = [], None
    for quantization, location, gpus, sharding in cases:
        settings = {"model.path": MODELS[model], "model.quantization": quantization, "curvature.location": location}
        recipe = load_recipe(RECIPE, COMMON | settings)
        plan = plan_recipe(recipe, get_device("H100"), sharding=Sharding(gpus, sharding), memory=memory)
        memory = plan.memory
        peaks = {stage.name: stage.held.total for stage in plan.stages if stage.name in STAGES}
        fits = {name: peak <= usable_bytes(plan) for name, peak in peaks.items()}
        facts = {"model": model, "quantization": quantization, "gpus": gpus, "sharding": sharding}
        rows.append(facts | {"peak_bytes": peaks, "fits": fits})
    return rows


def format_table(rows: list[dict[str, Any]]) -> str:
    """One row an engine; what does not fit stands in brackets."""
    lines = [
        f"| model | base | GPUs | engine | {' | '.join(STAGES.values())} |",
        f"|---|---|---|---|{'---|' * len(STAGES)}",
    ]
    for row in rows:
        cells = [row["model"], "bfloat16" if row["quantization"] == "null" else row["quantization"], str(row["gpus"])]
        cells.append({NONE: "one process a GPU", FSDP2: "FSDP2", ZERO3: "ZeRO-3"}[row["sharding"]])
        for name in STAGES:
            text = f"{row['peak_bytes'][name] / 2**30:.1f}"
            cells.append(text if row["fits"][name] else f"({text})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "benchmarks" / "plan-sizes.json")
    parser.add_argument("--models", default=",".join(MODELS))
    options = parser.parse_args()
    rows = [row for model in options.models.split(",") for row in measured(model)]
    report = {"schema": 1, "command": "python benchmarks/plan_sizes.py", "device": "H100", "rows": rows}
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    print(format_table(rows))
    print(f"\nGiB on each GPU; in brackets what does not fit. Written: {options.output}")


if __name__ == "__main__":
    main()
