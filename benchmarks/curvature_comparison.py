"""Does curvature in a basis hold better than its rivals? Strengths chosen on validation items, then three seeds on the test.

    python benchmarks/curvature_comparison.py --work_dir runs/curvature [--workers 2] [--quick]

On SciQ with its passages (recipes/study-sciq-passages.yaml). Every method's strengths are tried with a seed of their own on
validation text and items, and one is chosen by the rule of benchmarks/comparison.py; those of `alora` and `ewclora` were
tried there, with the same recipe, seed and items, and are taken from results/comparison.json, as is the unprotected training
that sets the floor of accuracy. Then all methods are trained with three other seeds and measured on the test items.

Beside perplexity and accuracy: the rise of the general cross-entropy over the base model's, in nats a token, and the
cross-entropy over the four choices, which moves where accuracy over 500 items cannot. Writes
results/curvature-comparison.json and prints its tables: the test's, and the validation curves at like learning. `--read FILE`
prints those of a finished comparison again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comparison import (
    SELECTION_SEED,
    TEST_ITEMS,
    choose,
    figures,
    recipe_path,
    results_of,
    validation_overrides,
)

from alora_trainer.basics.output import configure_output
from alora_trainer.experiment.run.sweep import Grid, run_sweep

ROOT = Path(__file__).resolve().parent.parent
TASK = "sciq-passages"
# By the setting that says how strongly, the methods that have it and the strengths that are tried.
TRIED: Mapping[str, tuple[tuple[str, ...], tuple[float, ...]]] = {
    "alora.lam": (("kfac", "ekfac", "covariance"), (0.0003, 0.001, 0.003)),
    "method_options.ewclora_true.alora.lam": (("ewclora_true",), (0.003, 0.01, 0.03)),
    "method_options.kl_anchor.weight": (("kl_anchor",), (1.0, 4.0)),
    "method_options.replay.weight": (("replay",), (1.0, 4.0)),
}
EARLIER = ("ewclora", "alora")
# Held as strongly as `ewclora`, whose importance it has in fewer bytes.
FACTORED = "ewclora_factored"
# Of the cross-entropy over choices, where the validation curves are read.
LEVELS = (2.56, 2.58, 2.60)
# Of general text that curvature is measured on; Fisher information is on all 122,880 tokens.
CURVATURE_TOKENS = {"curvature.tokens": "12288"}
# Each in a run folder of its own, so that two processes can share the work of a seed.
GROUPS = (
    ("base", "kfac", "ewclora", "kl_anchor"),
    ("ekfac", "covariance", "ewclora_true", "replay"),
    ("lora", "alora", FACTORED),
)


def strength_of(method: str) -> str:
    """The setting that says how strongly a method holds."""
    key = "weight" if method in ("kl_anchor", "replay") else "alora.lam"
    return f"method_options.{method}.{key}"


def choice_losses(samples: Path) -> list[float]:
    """By item, the cross-entropy in nats of the right choice among all, each as likely as the model finds it."""
    losses = []
    for line in samples.read_text().splitlines():
        sample = json.loads(line)
        if "log_likelihoods" in sample:
            likelihoods = sample["log_likelihoods"]
            top = max(likelihoods)
            total = top + math.log(sum(math.exp(one - top) for one in likelihoods))
            losses.append(total - likelihoods[sample["target"]])
    return losses


def measured(run: Path, name: str) -> dict[str, float]:
    """The figures of a method in a run folder."""
    result = results_of(run)[name]
    losses = choice_losses(run / name / "samples.jsonl")
    found = figures(result) | {"choices": statistics.mean(losses)}
    assert result.general.token_cross_entropy is not None
    return found | {"cross_entropy": result.general.token_cross_entropy}


def select(work: Path, tried: Mapping[str, Any], common: Mapping[str, str], workers: int) -> dict[str, Any]:
    """Try the strengths on validation items; what was found, and what is chosen."""
    earlier = json.loads((ROOT / "results" / "comparison.json").read_text())["selection"][TASK]
    grids = [
        Grid(
            recipe_path(TASK),
            overrides={**validation_overrides(TASK), **common, "methods": ",".join(methods)},
            over={setting: [str(value) for value in values]},
            seeds=[SELECTION_SEED],
            name=f"selection-{methods[0]}",
        )
        for setting, (methods, values) in tried.items()
    ]
    run_sweep(grids, output_dir=work, workers=workers)
    curves: dict[str, list[dict[str, float]]] = {name: earlier["tried"][name] for name in EARLIER}
    for setting, (methods, values) in tried.items():
        run = work / f"selection-{methods[0]}" / f"seed-{SELECTION_SEED}"
        key = setting.rpartition(".")[2]
        for method in methods:
            curves[method] = [{"lam": value} | measured_at(run, method, key, value) for value in values]
    chosen = {method: choose(curve, earlier["reference"]) for method, curve in curves.items()}
    at_the_edge = [method for method, curve in curves.items() if chosen[method] in (curve[0]["lam"], curve[-1]["lam"])]
    return {"reference": earlier["reference"], "tried": curves, "chosen": chosen, "at_the_edge": at_the_edge}


def measured_at(run: Path, method: str, key: str, value: float) -> dict[str, float]:
    """A method at a strength; the recipe's own is not varied, and has no name of its own."""
    named = f"{method}@{key}={value}"
    return measured(run, named if named in results_of(run) else method)


def final(
    work: Path, chosen: Mapping[str, float], seeds: Sequence[int], common: Mapping[str, str], workers: int
) -> dict[str, Any]:
    """All methods with the chosen strengths on the test items, once a seed."""
    strengths = {strength_of(method): str(value) for method, value in chosen.items()}
    strengths[strength_of(FACTORED)] = str(chosen["ewclora"])
    overrides = {"domain.test_items": str(TEST_ITEMS), **common, **strengths}
    grids = [
        Grid(
            recipe_path(TASK),
            overrides={**overrides, "methods": ",".join(group)},
            seeds=seeds,
            name=f"final-{group[0]}",
        )
        for group in GROUPS
    ]
    run_sweep(grids, output_dir=work, workers=workers)
    found = {
        method: [measured(work / f"final-{group[0]}" / f"seed-{seed}", method) for seed in seeds]
        for group in GROUPS
        for method in group
    }
    bases = [one["cross_entropy"] for one in found["base"]]
    return {method: _spread(each, bases) for method, each in found.items()}


def _spread(values: Sequence[Mapping[str, float]], bases: Sequence[float]) -> dict[str, Any]:
    """Every seed's figures, their mean and their standard deviation."""
    with_rise = [{**value, "rise": value["cross_entropy"] - base} for value, base in zip(values, bases, strict=True)]
    summary: dict[str, Any] = {}
    for key in ("rise", "perplexity", "choices", "accuracy"):
        each = [value[key] for value in with_rise]
        sd = statistics.stdev(each) if len(each) > 1 else None
        summary[key] = {"each": each, "mean": statistics.mean(each), "sd": sd}
    summary["accuracy_stderr_of_one_seed"] = values[0]["accuracy_stderr"]
    return summary


def format_table(report: Mapping[str, Any]) -> str:
    """One row a method."""
    chosen = report["selection"]["chosen"]
    lines = [
        "| method | strength | rise (nats a token) | general perplexity | over choices | learned (%) | accuracy (%) |",
        "|---|---|---|---|---|---|---|",
    ]
    start, lora = (report["final"][name]["choices"]["mean"] for name in ("base", "lora"))
    for method, entry in report["final"].items():
        strength = chosen.get("ewclora" if method == FACTORED else method)
        cells = [
            method,
            "" if strength is None else f"{strength:g}",
            _pm(entry["rise"], 1, 4),
            _pm(entry["perplexity"], 1, 2),
            _pm(entry["choices"], 1, 3),
            f"{100 * (start - entry['choices']['mean']) / (start - lora):.0f}",
            _pm(entry["accuracy"], 100, 1),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def format_like_learning(report: Mapping[str, Any]) -> str:
    """General cross-entropy on validation by the cross-entropy over choices, between the strengths by straight lines."""
    lines = [f"| held by | {' | '.join(f'at {level}' for level in LEVELS)} |", f"|---|{'---|' * len(LEVELS)}"]
    for method, curve in report["selection"]["tried"].items():
        if all("choices" in point for point in curve):  # the earlier ones were not asked for it
            found = [_at(curve, level) for level in LEVELS]
            lines.append(f"| {method} | {' | '.join('' if one is None else f'{one:.3f}' for one in found)} |")
    return "\n".join(lines)


def _at(curve: Sequence[Mapping[str, float]], level: float) -> float | None:
    points = sorted((point["choices"], point["cross_entropy"]) for point in curve)
    for (left, low), (right, high) in zip(points, points[1:], strict=False):
        if left <= level <= right:
            return low + (high - low) * (level - left) / (right - left)
    return None


def _pm(value: Mapping[str, Any], factor: float, digits: int) -> str:
    text = f"{factor * value['mean']:.{digits}f}"
    return text if value["sd"] is None else f"{text} ± {factor * value['sd']:.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work_dir", type=Path, default=Path("runs/curvature"))
    parser.add_argument(
        "--output", type=Path, help="default: results/curvature-comparison.json; with --quick, in work_dir"
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--quick", action="store_true", help="a few steps and items, to see that it runs")
    parser.add_argument("--read", type=Path, metavar="FILE", help="print the tables of a finished comparison, and stop")
    options = parser.parse_args()
    if options.read is not None:
        finished = json.loads(options.read.read_text())
        print(f"{format_table(finished)}\n\n{format_like_learning(finished)}")
        return
    seeds, common, tried = [int(x) for x in options.seeds.split(",")], dict(CURVATURE_TOKENS), dict(TRIED)
    if options.quick:
        seeds, tried = seeds[:1], {setting: (methods, values[:1]) for setting, (methods, values) in tried.items()}
        common = {"tune.max_steps": "2", "record.max_steps": "2", "evaluation.limit": "4", "fisher.samples": "8"}
        common |= {"general.test_bytes": "2000", "general.train_tokens": "12800", "curvature.tokens": "1000"}
    began = time.perf_counter()
    configure_output()
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    selection = select(options.work_dir, tried, common, options.workers)
    report = {
        "schema": 1,
        "command": "python benchmarks/curvature_comparison.py",
        "selection_seed": SELECTION_SEED,
        "seeds": seeds,
        "quick": options.quick,
        "selection": selection,
        "final": final(options.work_dir, selection["chosen"], seeds, common, options.workers),
    }
    default = options.work_dir if options.quick else ROOT / "results"
    path = options.output or default / "curvature-comparison.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{format_table(report)}\n\n{format_like_learning(report)}")
    if selection["at_the_edge"]:
        print(f"chosen at the edge of the tried strengths: {', '.join(selection['at_the_edge'])}")
    print(f"\n{(time.perf_counter() - began) / 60:.1f} min; written: {path}")


if __name__ == "__main__":
    main()
