"""Which method forgets least at like accuracy? Strengths chosen on validation items, then three seeds on the test items.

    python benchmarks/comparison.py --work_dir runs/comparison [--workers 2] [--tasks sciq-passages,piqa] [--quick]

For every task and every method with a penalty, the same strengths lambda are tried with a seed of their own, on the validation
split of the general text and of the domain (PiQA has no labelled test items: its validation items are the test, and 600
training items are held out for the choice). Chosen is the strength with the lowest general perplexity among those whose
accuracy is at most one standard error below that of unprotected training (lora_ab); if none is, the one with the highest
accuracy. Then all methods are trained with three other seeds and measured on the test items.

Every unit of work is `alora run` in a folder and a process of its own, with one thread; what is finished is not done again.
Writes results/comparison.json and prints its table.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("base", "lora", "lora_ab", "l2", "shuffled", "ewclora", "alora")
HELD = ("l2", "shuffled", "ewclora", "alora")
REFERENCE = "lora_ab"
LAMBDAS = {"sciq-passages": (0.001, 0.003, 0.01, 0.03), "piqa": (0.003, 0.1)}
SELECTION_SEED = 100
HELD_OUT_ITEMS = 600
TEST_ITEMS = 500
SHARED_PARTS = ("data", "record", "fisher")


@dataclass(frozen=True)
class Unit:
    """One `alora run`: the methods of one task with one seed, in one folder.

    Attributes:
        task: names the recipe, recipes/study-TASK.yaml.
        folder: where it runs.
        methods: what is run.
        seed: of all of it.
        overrides: of the recipe, by key.
        shares: a finished unit's folder whose data, recording and Fisher information are used.
    """

    task: str
    folder: Path
    methods: tuple[str, ...]
    seed: int
    overrides: Mapping[str, str]
    shares: Path | None = None


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


def run_unit(unit: Unit, threads: int = 1) -> dict[str, Any]:
    """Run a unit unless it is finished, in a process of its own; what its results.json says of the methods."""
    unit.folder.mkdir(parents=True, exist_ok=True)
    if unit.shares is not None:
        for part in SHARED_PARTS:
            link = unit.folder / part
            if not link.exists():
                link.symlink_to((unit.shares / part).resolve(), target_is_directory=True)
    command = [sys.executable, "-m", "alora_trainer.cli", "run", str(recipe_path(unit.task))]
    command += ["--output_dir", str(unit.folder), "--methods", ",".join(unit.methods), "--seed", str(unit.seed)]
    for key, value in unit.overrides.items():
        command += [f"--{key}={value}"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    start = time.perf_counter()
    with (unit.folder / "log.txt").open("a") as log:
        finished = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False)
    if finished.returncode != 0:
        tail = (unit.folder / "log.txt").read_text().strip().splitlines()[-3:]
        raise SystemExit(f"{unit.folder} failed (its log.txt has it all): " + " | ".join(tail))
    print(f"{unit.folder}: {time.perf_counter() - start:.0f} s", flush=True)
    return json.loads((unit.folder / "results.json").read_text())


def scores(results: Mapping[str, Any], method: str) -> dict[str, float]:
    """General perplexity and domain accuracy with its standard error, of one method."""
    entry = results["methods"][method]
    (task,) = entry["tasks"].values()
    return {
        "perplexity": entry["general"]["token_perplexity"],
        "accuracy": task["acc"],
        "accuracy_stderr": task["acc_stderr"],
    }


def in_parallel(pool: ThreadPoolExecutor, units: Sequence[Unit]) -> list[dict[str, Any]]:
    return list(pool.map(run_unit, units))


def select(
    pool: ThreadPoolExecutor, work: Path, lambdas: Mapping[str, Sequence[float]], common: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Try every task's strengths on validation items; by task and method what was found, and which one is chosen."""

    def unit(task: str, lam: float, first: bool) -> Unit:
        folder = work / task / "selection"
        return Unit(
            task, folder / f"lam-{lam:g}", ((REFERENCE, *HELD) if first else HELD), SELECTION_SEED,
            {**validation_overrides(task), **common, "alora.lam": str(lam)},
            None if first else folder / f"lam-{lambdas[task][0]:g}",
        )  # fmt: skip

    firsts = in_parallel(pool, [unit(task, own[0], True) for task, own in lambdas.items()])
    rest = [unit(task, lam, False) for task, own in lambdas.items() for lam in own[1:]]
    found = {(task, lambdas[task][0]): result for task, result in zip(lambdas, firsts, strict=True)}
    found |= {(u.task, float(u.overrides["alora.lam"])): r for u, r in zip(rest, in_parallel(pool, rest), strict=True)}
    selection: dict[str, dict[str, Any]] = {}
    for task, own in lambdas.items():
        reference = scores(found[task, own[0]], REFERENCE)
        tried = {m: [{"lam": lam} | scores(found[task, lam], m) for lam in sorted(own)] for m in HELD}
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
    pool: ThreadPoolExecutor, work: Path, selection: Mapping[str, Any], seeds: Sequence[int], common: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """All methods with the chosen strengths on the test items, once a seed."""
    units = []
    for task, chosen in selection.items():
        strengths = {f"method_options.{m}.alora.lam": str(lam) for m, lam in chosen["chosen"].items()}
        label = "_".join(f"{lam:g}" for lam in chosen["chosen"].values())
        units += [
            Unit(
                task,
                work / task / "final" / f"{label}-seed{seed}",
                METHODS,
                seed,
                {"domain.test_items": str(TEST_ITEMS), **common, **strengths},
            )
            for seed in seeds
        ]
    results = in_parallel(pool, units)
    table: dict[str, dict[str, Any]] = {}
    for task in selection:
        own = [result for unit, result in zip(units, results, strict=True) if unit.task == task]
        table[task] = {method: spread([scores(result, method) for result in own]) for method in METHODS}
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
    start: Callable[[], float] = time.perf_counter
    began = start()
    with ThreadPoolExecutor(options.workers) as pool:
        selection = select(pool, options.work_dir, lambdas, common)
        table = final(pool, options.work_dir, selection, seeds, common)
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
    print(f"\n{(start() - began) / 60:.1f} min; written: {path}")


if __name__ == "__main__":
    main()
