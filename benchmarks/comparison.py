"""Which method forgets least at like accuracy? Strengths chosen on validation items, then three seeds on the test items.

    python benchmarks/comparison.py --work_dir runs/comparison [--workers 2] [--tasks sciq-passages,piqa] [--quick]

For every task and every method with a penalty, the same strengths lambda are tried with a seed of their own, on the validation
split of the general text and of the domain (PiQA has no labelled test items: its validation items are the test, and 600
training items are held out for the choice). Chosen is the strength with the lowest general perplexity among those whose
accuracy is at most one standard error below that of unprotected training (lora_ab); if none is, the one with the highest
accuracy. Then all methods are trained with three other seeds and measured on the test items.

Both halves are sweeps of the package, in processes of one thread each; what is finished is not done again. Writes
results/comparison.json and prints its table.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from alora_trainer.basics.output import configure_output
from alora_trainer.experiment.report.method_result import MethodResult
from alora_trainer.experiment.report.results import RESULTS_FILE, read_results
from alora_trainer.experiment.run.sweep import Grid, run_sweep

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("base", "lora", "lora_ab", "l2", "shuffled", "ewclora", "alora")
HELD = ("l2", "shuffled", "ewclora", "alora")
REFERENCE = "lora_ab"
LAMBDAS = {"sciq-passages": (0.001, 0.003, 0.01, 0.03), "piqa": (0.003, 0.1)}
SELECTION_SEED = 100
HELD_OUT_ITEMS = 600
TEST_ITEMS = 500


def recipe_path(task: str) -> Path:
    return ROOT / "recipes" / f"study-{task}.yaml"


def validation_overrides(task: str) -> dict[str, str]:
    """The study's recipe with validation text and validation items in the place of the test's."""
    recipe = yaml.safe_load(recipe_path(task).read_text())
    overrides = {
        f"general.test.{name}": source.replace("/test.jsonl.gz", "/validation.jsonl.gz")
        for name, source in recipe["general"]["test"].items()
    }
    domain = recipe["domain"]
    if "validation" not in domain["test"]:
        return overrides | {"domain.test": domain["test"].replace("/test.jsonl.gz", "/validation.jsonl.gz")}
    held_out = json.dumps({"by": "goal", "items": HELD_OUT_ITEMS})
    return overrides | {
        "domain.source": domain["train"], "domain.train": "null", "domain.test": "null", "domain.holdout": held_out
    }  # fmt: skip


def results_of(run: Path) -> dict[str, MethodResult]:
    """What was found in a run folder, by method."""
    (results,) = read_results(run / RESULTS_FILE)
    return dict(results.methods)


def figures(result: MethodResult) -> dict[str, float]:
    """General perplexity and domain accuracy with its standard error, of one method."""
    (task,) = result.tasks.values()
    found = {
        "perplexity": result.general.token_perplexity,
        "accuracy": task.acc,
        "accuracy_stderr": task.acc_stderr,
    }
    return {name: value for name, value in found.items() if value is not None}


def select(
    work: Path, lambdas: Mapping[str, Sequence[float]], common: Mapping[str, str], workers: int
) -> dict[str, dict[str, Any]]:
    """Try every task's strengths on validation items; by task and method what was found, and which one is chosen."""
    grids = [
        Grid(
            recipe_path(task),
            overrides={**validation_overrides(task), **common, "methods": ",".join((REFERENCE, *HELD))},
            over={"alora.lam": [str(lam) for lam in own]},
            seeds=[SELECTION_SEED],
            name=f"{task}/selection",
        )
        for task, own in lambdas.items()
    ]
    run_sweep(grids, output_dir=work, workers=workers)
    selection: dict[str, dict[str, Any]] = {}
    for task, own in lambdas.items():
        found = results_of(work / task / "selection" / f"seed-{SELECTION_SEED}")
        reference = figures(found[REFERENCE])
        # A single strength that is the recipe's own is not varied, and has no name of its own.
        tried = {
            method: [{"lam": lam} | figures(found.get(f"{method}@lam={lam}") or found[method]) for lam in sorted(own)]
            for method in HELD
        }
        selection[task] = {
            "reference": reference,
            "tried": tried,
            "chosen": {method: choose(curve, reference) for method, curve in tried.items()},
        }
        edges = {min(own), max(own)}
        selection[task]["at_the_edge"] = [m for m, lam in selection[task]["chosen"].items() if lam in edges]
    return selection


def choose(curve: Sequence[Mapping[str, float]], reference: Mapping[str, float]) -> float:
    """The strength by the rule in this file's head."""
    floor = reference["accuracy"] - reference["accuracy_stderr"]
    enough = [point for point in curve if point["accuracy"] >= floor]
    if enough:
        return min(enough, key=lambda point: point["perplexity"])["lam"]
    return max(curve, key=lambda point: point["accuracy"])["lam"]


def final(
    work: Path, selection: Mapping[str, Any], seeds: Sequence[int], common: Mapping[str, str], workers: int
) -> dict[str, dict[str, Any]]:
    """All methods with the chosen strengths on the test items, once a seed."""
    folders, grids = {}, []
    for task, chosen in selection.items():
        strengths = {f"method_options.{m}.alora.lam": str(lam) for m, lam in chosen["chosen"].items()}
        folders[task] = f"{task}/final-{'_'.join(f'{lam:g}' for lam in chosen['chosen'].values())}"
        overrides = {"domain.test_items": str(TEST_ITEMS), **common, **strengths, "methods": ",".join(METHODS)}
        grids.append(Grid(recipe_path(task), overrides=overrides, seeds=seeds, name=folders[task]))
    run_sweep(grids, output_dir=work, workers=workers)
    table: dict[str, dict[str, Any]] = {}
    for task, folder in folders.items():
        own = [results_of(work / folder / f"seed-{seed}") for seed in seeds]
        table[task] = {method: spread([figures(found[method]) for found in own]) for method in METHODS}
    return table


def spread(values: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Every seed's value, their mean and their standard deviation."""
    summary: dict[str, Any] = {}
    for key in ("perplexity", "accuracy"):
        each = [value[key] for value in values]
        summary[key] = {
            "each": each,
            "mean": statistics.mean(each),
            "sd": statistics.stdev(each) if len(each) > 1 else None,
        }
    summary["accuracy_stderr_of_one_seed"] = values[0]["accuracy_stderr"]
    return summary


def format_table(report: Mapping[str, Any]) -> str:
    """One table a task."""
    lines = []
    for task, methods in report["final"].items():
        lines += [
            f"\n{task}",
            "",
            "| method | lambda | general perplexity | change | accuracy (%) |",
            "|---|---|---|---|---|",
        ]
        base = methods["base"]["perplexity"]["mean"]
        for method, entry in methods.items():
            lam = report["selection"][task]["chosen"].get(method)
            perplexity, accuracy = entry["perplexity"], entry["accuracy"]
            lines.append(
                f"| {method} | {'' if lam is None else f'{lam:g}'} | {pm(perplexity, 1, 2)} | "
                f"{100 * (perplexity['mean'] / base - 1):+.1f} % | {pm(accuracy, 100, 1)} |"
            )
    return "\n".join(lines)


def pm(value: Mapping[str, Any], factor: float, digits: int) -> str:
    text = f"{factor * value['mean']:.{digits}f}"
    return text if value["sd"] is None else f"{text} ± {factor * value['sd']:.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work_dir", type=Path, default=Path("runs/comparison"))
    parser.add_argument(
        "--output", type=Path, default=None, help="default: results/comparison.json; with --quick, in work_dir"
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tasks", default=",".join(LAMBDAS))
    parser.add_argument("--lambdas", help="of all tasks, such as 0.01,0.1; default: those in this file")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--quick", action="store_true", help="a few steps and items, to see that it runs")
    options = parser.parse_args()
    chosen = [  # what the results depend on, and no path of this machine
        f"--{name} {getattr(options, name)}"
        for name in ("tasks", "lambdas", "seeds")
        if getattr(options, name) != parser.get_default(name)
    ]
    seeds, common = [int(x) for x in options.seeds.split(",")], {}
    given = [float(x) for x in options.lambdas.split(",")] if options.lambdas else None
    tasks = options.tasks.split(",")
    if given is None and (unknown := [task for task in tasks if task not in LAMBDAS]):
        parser.error(f"no strengths are set for {unknown[0]}: give --lambdas")
    lambdas = {task: given or list(LAMBDAS[task]) for task in tasks}
    if options.quick:
        lambdas, seeds = {task: own[:2] for task, own in lambdas.items()}, seeds[:1]
        common = {"tune.max_steps": "3", "record.max_steps": "3", "evaluation.limit": "8", "fisher.samples": "8"}
        common |= {"general.test_bytes": "3000", "general.train_tokens": "12800"}
    began = time.perf_counter()
    configure_output()
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    selection = select(options.work_dir, lambdas, common, options.workers)
    table = final(options.work_dir, selection, seeds, common, options.workers)
    report = {
        "schema": 1,
        "command": " ".join(["python benchmarks/comparison.py", *chosen]),
        "rule": " ".join(__doc__.split("\n\n")[2].split()),
        "lambdas": lambdas,
        "selection_seed": SELECTION_SEED,
        "seeds": seeds,
        "quick": options.quick,
        "selection": selection,
        "final": table,
    }
    path = options.output or (
        options.work_dir / "comparison.json" if options.quick else ROOT / "results" / "comparison.json"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(format_table(report))
    for task, chosen in selection.items():
        if chosen["at_the_edge"]:
            print(f"{task}: chosen at the edge of the tried strengths: {', '.join(chosen['at_the_edge'])}")
    print(f"\n{(time.perf_counter() - began) / 60:.1f} min; written: {path}")


if __name__ == "__main__":
    main()
