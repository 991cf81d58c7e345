"""Does it pay to choose where a new adapter starts? Every start, alone and held by curvature.

    python benchmarks/first_directions.py [--tasks sciq-passages openbookqa] [--seeds 0,1,2] [--workers 2] [--minutes N]

Tasks, lengths of training and kinds of text are the small board's (recipes/boards/small.yaml), with the first 300 of its test
items: curvature is measured on half of the kinds of general text, and forgetting on all of them, the two halves apart. All
strengths that are tried are in the table, and none is chosen. The starts: PEFT's own (which is LoRA, or kfac), the domain's
gradient alone (LoRA-GA's directions), general inputs' null space alone (LoRA-Null's), contrastive and natural, by 64 items of
the domain (benchmarks/first_directions_items.py says why); beside them EWCLoRA with the true Fisher information.

One task and one seed are 25 trainings, and written when they are done; what the report has is not done again, if it was made
with the same settings and libraries, nor is what was finished in the work folder. After --minutes no further one is begun.
Writes results/studies/first-directions.json and prints its table; `--quick` makes a few steps, to see that it runs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from comparison import ROOT, figures, results_of
from curvature_comparison import choice_losses
from studies import report_head, spread, taken_over

from alora_trainer.basics.files import write_json
from alora_trainer.basics.output import configure_output
from alora_trainer.basics.scores import GeneralScore
from alora_trainer.experiment.board.board_file import Board, read_board
from alora_trainer.experiment.report.results import environment
from alora_trainer.experiment.run.sweep import Grid, run_sweep

BOARD = ROOT / "recipes" / "boards" / "small.yaml"
STARTS = ("default", "gradient", "null_space", "contrastive", "natural_gradient")
STRENGTHS = (0.0, 0.0003, 0.001, 0.003)
FISHER_STRENGTHS = (0.003, 0.01)
FROZEN = ("default", "contrastive", "natural_gradient")
# All eigenvectors, so that a null space is one.
COMMON = {"curvature.keep": "null", "alora.init_items": "64", "domain.test_items": "300"}
# A few steps and items, to see that it runs.
QUICK = {
    "tune.max_steps": "2",
    "evaluation.limit": "4",
    "general.test_bytes": "2000",
    "fisher.samples": "8",
    "curvature.tokens": "1000",
    "alora.init_items": "8",
    "general.train_tokens": "12800",
}
FIGURES = ("rise_recorded", "rise_other", "choices", "accuracy")


def recorded(board: Board) -> list[str]:
    """The kinds of general text that curvature is measured on."""
    return list(json.loads(board.settings["general.train"]))


def grid(
    board: Board,
    task: str,
    seed: int,
    name: str,
    methods: str,
    over: Mapping[str, Sequence[Any]],
    settings: Mapping[str, str] | None = None,
    *,
    quick: bool = False,
) -> Grid:
    """Some trainings of a task of the board with one seed; `quick` takes the last of several values alone, and few steps."""
    learned = {one.name: one for one in board.tasks}[task]
    (model,) = board.models.values()
    overrides = {**board.settings, **learned.settings, "model": model, **COMMON, "methods": methods, **(settings or {})}
    return Grid(
        learned.recipe,
        overrides=overrides | (QUICK if quick else {}),
        over={setting: [str(value) for value in values][-1 if quick else 0 :] for setting, values in over.items()},
        seeds=[seed],
        name=f"{task}-{name}",
    )


def grids(board: Board, task: str, seed: int, quick: bool) -> dict[str, Grid]:
    """What is trained with one seed, by group."""
    make = partial(grid, board, task, seed, quick=quick)
    starts, frozen = {"alora.init_adapter": STARTS}, {"alora.init_adapter": FROZEN, "alora.lam": STRENGTHS[:1]}
    fisher = {"method_options.ewclora_true.alora.lam": FISHER_STRENGTHS}
    return {
        "base": make("base", "base", {}),
        "held": make("held", "kfac", starts | {"alora.lam": STRENGTHS}),
        "frozen": make("frozen", "kfac", frozen, {"alora.freeze_a": "true"}),
        "fisher": make("fisher", "ewclora_true", fisher),
    }


def measured(run: Path, name: str, kinds: Sequence[str]) -> dict[str, float]:
    """Cross-entropy on recorded and on other kinds of text, and the domain's figures, of one training."""
    result = results_of(run)[name]
    subsets = result.general.subsets or {}
    found = {"accuracy": figures(result)["accuracy"]}
    found["choices"] = statistics.mean(choice_losses(run / name / "samples.jsonl"))
    return found | halves(subsets, kinds)


def halves(subsets: Mapping[str, GeneralScore], kinds: Sequence[str]) -> dict[str, float]:
    """Cross-entropy in nats a token on the recorded kinds of text, and on the other ones."""
    found = {}
    for half, names in (("recorded", kinds), ("other", [one for one in subsets if one not in kinds])):
        tokens = [subsets[one].tokens or 0 for one in names]
        losses = [subsets[one].token_cross_entropy or 0.0 for one in names]
        found[half] = sum(n * loss for n, loss in zip(tokens, losses, strict=True)) / sum(tokens)
    return found


def trained(work: Path, made: Mapping[str, Grid], kinds: Sequence[str]) -> dict[str, dict[str, float]]:
    """The figures of every training of one task and seed, by group and name; `rise_...` over the base's cross-entropy."""
    runs = {group: work / grid.name / f"seed-{grid.seeds[0]}" for group, grid in made.items()}
    base = measured(runs["base"], "base", kinds)
    found = {
        f"{group} {name}": measured(run, name, kinds)
        for group, run in runs.items()
        for name in results_of(run)
        if name != "base" or group == "base"
    }
    for one in found.values():
        one |= {f"rise_{half}": one[half] - base[half] for half in ("recorded", "other")}
    return found


def summary(trainings: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[dict[str, Any]]:
    """One entry a training, over the seeds that are done."""
    names = dict.fromkeys(name for seed in trainings.values() for name in seed)
    return [
        {"name": name}
        | {key: spread(seed[name][key] for seed in trainings.values() if name in seed) for key in FIGURES}
        for name in names
    ]


NAMES = {
    "default": "PEFT's own",
    "gradient": "the domain's gradient",
    "null_space": "general text's null space",
    "contrastive": "contrastive",
    "natural_gradient": "natural",
}


def described(name: str) -> tuple[str, str]:
    """Start and penalty of a training, for people."""
    group, _, method = name.partition(" ")
    method, _, variant = method.partition("@")
    settings = dict(part.split("=") for part in variant.split(",") if part)
    if method == "base":
        return "the base model", ""
    if method == "ewclora_true":
        return NAMES["default"], f"EWCLoRA {settings['lam']}"
    start = NAMES[settings["init_adapter"]] + (", A frozen" if group.endswith("frozen") else "")
    penalty = f"Kronecker {settings['lam']}" if float(settings["lam"]) else "none"
    kind = group.removesuffix("frozen").rstrip("-")
    return start if kind in ("held", "") else f"{kind}: {start}", penalty


def format_table(entries: Sequence[Mapping[str, Any]]) -> str:
    """One row a training, mean and standard deviation over seeds."""
    lines = [
        "| start | penalty | seeds | rise, recorded kinds | rise, other kinds | cross-entropy over choices | accuracy (%) |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in entries:
        cells = [*described(entry["name"]), str(entry["choices"]["seeds"])]
        for key, factor, digits in zip(FIGURES, (1, 1, 1, 100), (4, 4, 3, 1), strict=True):
            mean, deviation = entry[key]["mean"], entry[key]["standard_deviation"]
            error = "" if deviation is None else f" ± {factor * deviation:.{digits}f}"
            cells.append(f"{factor * mean:.{digits}f}{error}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def asked(board: Board) -> dict[str, Any]:
    """What the figures depend on, beside seed and task."""
    files = [BOARD, *(Path(task.recipe) for task in board.tasks)]
    return {
        "starts": STARTS,
        "strengths": STRENGTHS,
        "fisher_strengths": FISHER_STRENGTHS,
        "frozen": FROZEN,
        "settings": COMMON,
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work_dir", type=Path, default=Path("runs/first-directions"))
    parser.add_argument(
        "--output", type=Path, help="default: results/studies/first-directions.json; with --quick, in work_dir"
    )
    parser.add_argument("--workers", type=int, default=2)
    board = read_board(BOARD)
    known = [task.name for task in board.tasks]
    parser.add_argument("--tasks", nargs="+", choices=known, default=known)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no further task and seed after so many")
    parser.add_argument("--quick", action="store_true", help="a few steps and items, to see that it runs")
    options = parser.parse_args()
    began = time.monotonic()
    configure_output()
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    path = (
        options.output
        or (options.work_dir if options.quick else ROOT / "results" / "studies") / "first-directions.json"
    )
    here, wanted, kinds = environment() | {"threads": 1}, asked(board), recorded(board)
    done: dict[str, Any] = {} if options.quick else taken_over(path, wanted, here).get("trainings", {})

    def write() -> None:
        report = {
            **report_head(here),
            "asked": wanted,
            "recorded": kinds,
            "summary": {task: summary(seeds) for task, seeds in done.items()},
            "trainings": done,
        }
        write_json(path, report)

    for seed in options.seeds.split(",")[: 1 if options.quick else None]:
        for task in options.tasks:
            late = time.monotonic() - began >= 60 * options.minutes
            if seed in done.get(task, {}) or late:
                continue
            made = grids(board, task, int(seed), options.quick)
            run_sweep(list(made.values()), output_dir=options.work_dir, workers=options.workers)
            done[task] = done.get(task, {}) | {seed: trained(options.work_dir, made, kinds)}
            write()
    write()
    for task, seeds in done.items():
        print(f"{task}\n{format_table(summary(seeds))}")
    print(f"\n{(time.monotonic() - began) / 60:.1f} min; written: {path}")


if __name__ == "__main__":
    main()
