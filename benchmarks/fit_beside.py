"""Does `alora fit` learn what the board's methods learn at the same rise? Its adapters beside theirs, on its own data.

    python benchmarks/fit_beside.py [--runs runs/fit-promise] [--tasks sciq openbookqa] [--seeds 0 1 2]

After benchmarks/fit_promise.py, for each task and seed of which a fit's folder is in --runs: the board's methods are trained on
the items that the fit trained on, for as many steps, at settings that the board chose, and scored on its test items and on the
text that its promise rests on (whole documents, where the promise takes a passage of each), as they are and scaled to .25, .5
and .75. What each has at the rise of a fit is read off the straight lines between these points and the base model. A fit had
its lambda steered and its scale chosen by validation; none of the others had. What is finished in the folders is not repeated.
Runs on one thread. Writes results/studies/fit-beside.json, and takes over what is in it, if it was made by the same settings
and libraries.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from comparison import results_of
from studies import report_head, spread, taken_over

from alora_trainer.basics.files import write_json
from alora_trainer.basics.output import configure_output
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.report.method_result import MethodResult
from alora_trainer.experiment.report.results import environment
from alora_trainer.experiment.run.whole_recipe import run_recipe

# Of a method the settings that the small board chose on one task or on both.
RIVALS: dict[str, dict[str, Any]] = {
    "lora": {"tune": {"learning_rate": 1e-3}},
    "kfac": {"tune": {"learning_rate": 2e-3}, "alora": {"lam": 3e-4}},
    "ewclora_true": {"tune": {"learning_rate": 2e-3}, "alora": {"lam": 3e-3}},
    "lora_contrastive_frozen": {"tune": {"learning_rate": 4e-3}},
    "replay": {"tune": {"learning_rate": 2e-3}, "weight": 0.25},
}
SCALES = (0.25, 0.5, 0.75)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/fit-promise"))
    parser.add_argument("--tasks", nargs="+", choices=["sciq", "openbookqa"], default=["sciq", "openbookqa"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--fits", type=Path, default=Path("results/studies/fit-promise.json"))
    parser.add_argument("--output", type=Path, default=Path("results/studies/fit-beside.json"))
    options = parser.parse_args()
    configure_output()
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    torch.set_num_threads(1)
    promised = json.loads(options.fits.read_text())
    here = environment() | {"threads": 1}
    asked = {"rivals": RIVALS, "scales": list(SCALES), "fits": promised["asked"]}
    earlier = taken_over(options.output, asked, here)
    rivals, fits = earlier.get("rivals", {}), earlier.get("fits", {})
    for task in options.tasks:
        for seed in options.seeds:
            name = f"{task}-{seed}"
            folders = sorted(options.runs.glob(f"{task}-*-{seed}/recipe.yaml"))
            if name not in rivals and folders:
                rivals[name] = _trained(folders[0], options.runs / "beside" / name)
    for cell in promised["cells"]:
        run = options.runs / cell["name"] / "run"
        if f"{cell['task']}-{cell['seed']}" in rivals and (run / "results.json").exists():
            fits[cell["name"]] = _fit(cell, run)
    compared = [_beside(fit, rivals[f"{fit['task']}-{fit['seed']}"]) for fit in fits.values()]
    report = {
        **report_head(here),
        "asked": asked,
        "summary": _summary(compared),
        "compared": compared,
        "fits": fits,
        "rivals": rivals,
    }
    write_json(options.output, report)
    print(format_table(report["summary"]))


def _fit(cell: Mapping[str, Any], run: Path) -> dict[str, Any]:
    """What a fit's adapter lost and learned, by the measure that the others have: its own run's evaluation."""
    results = results_of(run)
    base, after = _figures(results["base"]), _figures(results["adapter"])
    return {key: cell[key] for key in ("name", "task", "budget", "seed", "promised_rise")} | _learned(base, after)


def _learned(base: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    return {
        "rise": after["loss"] / base["loss"] - 1,
        "choices_fell": base["choices"] - after["choices"],
        "accuracy_gained": after["accuracy"] - base["accuracy"],
    }


def _trained(recipe: Path, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """By method, what it lost and learned at each scale, least first; the base model is where both are 0."""
    own = {f"method_options.{name}": json.dumps(settings) for name, settings in RIVALS.items()}
    overrides = {
        "methods": f"[base, {', '.join(RIVALS)}]",
        "evaluation.scales": json.dumps(list(SCALES)),
        "alora.budget": "null",
        "alora.application": "coupled",
    }
    run_recipe(load_recipe(recipe, overrides | own), output_dir=folder)
    results = results_of(folder)
    base = _figures(results["base"])
    found: dict[str, list[dict[str, Any]]] = {}
    for name in RIVALS:
        places = {**{scale: f"{name}@scale={scale}" for scale in SCALES}, 1.0: name}
        found[name] = [{"scale": scale} | _learned(base, _figures(results[place])) for scale, place in places.items()]
    return found


def _figures(result: MethodResult) -> dict[str, float]:
    (task,) = result.tasks.values()
    figures = {"loss": result.general.token_cross_entropy, "choices": task.choice_cross_entropy, "accuracy": task.acc}
    assert None not in figures.values(), "something was not measured"
    return {key: value for key, value in figures.items() if value is not None}


def at_rise(points: Sequence[Mapping[str, float]], rise: float, key: str) -> float:
    """A figure where a method's curve reaches a rise: from 0 at the base model over its points; its last, if it never does."""
    before = {"rise": 0.0, key: 0.0}
    for point in sorted(points, key=lambda one: one["rise"]):
        if point["rise"] >= rise:
            share = (
                (rise - before["rise"]) / (point["rise"] - before["rise"]) if point["rise"] > before["rise"] else 1.0
            )
            return before[key] + share * (point[key] - before[key])
        before = dict(point)
    return before[key]


def _beside(fit: Mapping[str, Any], rivals: Mapping[str, Any]) -> dict[str, Any]:
    """A fit, and every rival at its rise."""
    keys = ("choices_fell", "accuracy_gained")
    return {
        **fit,
        "rivals": {name: {key: at_rise(points, fit["rise"], key) for key in keys} for name, points in rivals.items()},
    }


def _summary(compared: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """By task and budget, over seeds: the fit, and every rival at its rise."""
    rows = []
    for task, budget in dict.fromkeys((one["task"], one["budget"]) for one in compared):
        own = [one for one in compared if (one["task"], one["budget"]) == (task, budget)]
        figures = {"fit": own} | {name: [one["rivals"][name] for one in own] for name in RIVALS}
        for name, each in figures.items():
            rows.append(
                {"task": task, "budget": budget, "method": name, "rise": spread(one["rise"] for one in own)}
                | {key: spread(one[key] for one in each) for key in ("choices_fell", "accuracy_gained")}
            )
    return rows


def format_table(summary: Sequence[Mapping[str, Any]]) -> str:
    """The summary in Markdown, a line a task and budget, a column a method: nats over choices, points of accuracy."""
    names = ("fit", *RIVALS)
    lines = [
        f"| task | budget (%) | seeds | rise (%) | {' | '.join(names)} |",
        "|" + "---|" * (len(names) + 4),
    ]
    for task, budget in dict.fromkeys((row["task"], row["budget"]) for row in summary):
        own = {row["method"]: row for row in summary if (row["task"], row["budget"]) == (task, budget)}
        rise = own["fit"]["rise"]
        cells = [task, f"{100 * budget:g}", str(rise["seeds"]), f"{100 * rise['mean']:.2f}"]
        for name in names:
            nats, points = own[name]["choices_fell"]["mean"], 100 * own[name]["accuracy_gained"]["mean"]
            cells.append(f"{nats:.3f}, {points:+.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
