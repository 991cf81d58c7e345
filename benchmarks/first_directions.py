"""Does it pay to choose where a new adapter starts? Every start, alone and held by curvature.

    python benchmarks/first_directions.py --work_dir runs/first-directions [--tasks sciq-passages openbookqa] [--seeds 0,1,2]

Tasks, sizes and kinds of text are the small board's (recipes/boards/small.yaml): curvature is measured on half of the kinds of
general text, and forgetting on all of them, the two halves apart. All strengths that are tried are in the table, and none is
chosen. The starts: PEFT's own (which is LoRA, or kfac), the domain's gradient alone (LoRA-GA's directions), general inputs'
null space alone (LoRA-Null's), contrastive and natural; beside them EWCLoRA with the true Fisher information. What was finished
in the work folder is not done again. Writes results/first-directions.json and prints its table; `--quick` makes a few steps,
to see that it runs.
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

from comparison import ROOT, figures, results_of
from curvature_comparison import choice_losses

from alora_trainer.basics.output import configure_output
from alora_trainer.experiment.board.board_file import Board, read_board
from alora_trainer.experiment.run.sweep import Grid, run_sweep

BOARD = ROOT / "recipes" / "boards" / "small.yaml"
STARTS = ("default", "gradient", "null_space", "contrastive", "natural_gradient")
STRENGTHS = (0.0, 0.0003, 0.001, 0.003)
FISHER_STRENGTHS = (0.003, 0.01)
FROZEN = ("default", "contrastive", "natural_gradient")
# All eigenvectors, so that a null space is one.
COMMON = {"curvature.keep": "null"}


def recorded(board: Board) -> list[str]:
    """The kinds of general text that curvature is measured on."""
    return list(json.loads(board.settings["general.train"]))


def grids(board: Board, task: str, seeds: Sequence[int], quick: bool) -> dict[str, Grid]:
    """What is trained, by group."""
    limit = 1 if quick else None
    learned = {one.name: one for one in board.tasks}[task]
    (model,) = board.models.values()
    overrides = {**board.settings, **learned.settings, "model": model, **COMMON}
    if quick:
        overrides |= {"tune.max_steps": "2", "evaluation.limit": "4", "general.test_bytes": "2000"}
        overrides |= {"fisher.samples": "8", "curvature.tokens": "1000", "alora.init_items": "8"}
        overrides |= {"general.train_tokens": "12800"}

    def grid(name: str, methods: str, over: Mapping[str, Sequence[Any]], **more: str) -> Grid:
        varied = {
            setting: [str(value) for value in values][-limit if limit else None :] for setting, values in over.items()
        }
        return Grid(
            learned.recipe,
            overrides=overrides | {"methods": methods} | more,
            over=varied,
            seeds=seeds,
            name=f"{task}-{name}",
        )

    return {
        "base": grid("base", "base", {}),
        "held": grid("held", "kfac", {"alora.init_adapter": STARTS, "alora.lam": STRENGTHS}),
        "frozen": grid(
            "frozen",
            "kfac",
            {"alora.init_adapter": FROZEN, "alora.lam": STRENGTHS[:1]},
            **{"alora.freeze_a": "true"},
        ),
        "fisher": grid("fisher", "ewclora_true", {"method_options.ewclora_true.alora.lam": FISHER_STRENGTHS}),
    }


def measured(run: Path, name: str, kinds: Sequence[str]) -> dict[str, float]:
    """Cross-entropy on recorded and on other kinds of text, and the domain's figures, of one training."""
    result = results_of(run)[name]
    subsets = result.general.subsets or {}
    found = {"accuracy": figures(result)["accuracy"]}
    found["choices"] = statistics.mean(choice_losses(run / name / "samples.jsonl"))
    for half, names in (("recorded", kinds), ("other", [one for one in subsets if one not in kinds])):
        tokens = [subsets[one].tokens or 0 for one in names]
        losses = [subsets[one].token_cross_entropy or 0.0 for one in names]
        found[half] = sum(n * loss for n, loss in zip(tokens, losses, strict=True)) / sum(tokens)
    return found


def collected(work: Path, made: Mapping[str, Grid], seeds: Sequence[int], kinds: Sequence[str]) -> list[dict[str, Any]]:
    """One entry a training and strength, over seeds; `rise_...` are over the base model's cross-entropy."""
    base = measured(work / str(made["base"].name) / f"seed-{seeds[0]}", "base", kinds)
    entries = []
    for group, grid in made.items():
        if group == "base":
            continue
        runs = [work / str(grid.name) / f"seed-{seed}" for seed in seeds]
        for name in results_of(runs[0]):
            each = [measured(run, name, kinds) for run in runs]
            for one in each:
                one |= {f"rise_{half}": one[half] - base[half] for half in ("recorded", "other")}
            summary = {key: _summary([one[key] for one in each]) for key in each[0]}
            entries.append({"group": group, "name": name, **summary})
    return [{"group": "base", "name": "base", **{key: _summary([value]) for key, value in base.items()}}, *entries]


def _summary(values: Sequence[float]) -> dict[str, Any]:
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"each": list(values), "mean": statistics.mean(values), "sd": sd}


def format_table(entries: Sequence[Mapping[str, Any]]) -> str:
    """One row a training."""
    keys = ("rise_recorded", "rise_other", "choices", "accuracy")
    lines = [
        "| what | rise on recorded kinds (nats a token) | rise on others | cross-entropy over choices | accuracy (%) |",
        "|---|---|---|---|---|",
    ]
    for entry in entries:
        cells = [f"{entry['group']} {entry['name']}"]
        for key, factor, digits in zip(keys, (1, 1, 1, 100), (4, 4, 3, 1), strict=True):
            value = entry.get(key)
            text = "0" if value is None else f"{factor * value['mean']:.{digits}f}"
            spread = "" if value is None or value["sd"] is None else f" ± {factor * value['sd']:.{digits}f}"
            cells.append(text + spread)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work_dir", type=Path, default=Path("runs/first-directions"))
    parser.add_argument("--output", type=Path, help="default: results/first-directions.json; with --quick, in work_dir")
    parser.add_argument("--workers", type=int, default=2)
    board = read_board(BOARD)
    known = [task.name for task in board.tasks]
    parser.add_argument("--tasks", nargs="+", choices=known, default=known)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--quick", action="store_true", help="a few steps and items, to see that it runs")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")][: 1 if options.quick else None]
    began = time.perf_counter()
    configure_output()
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    report: dict[str, Any] = {
        "schema": 1,
        "command": f"python benchmarks/first_directions.py --tasks {' '.join(options.tasks)} --seeds {options.seeds}",
        "seeds": seeds,
        "quick": options.quick,
        "recorded": recorded(board),
        "tasks": {},
    }
    for task in options.tasks:
        made = grids(board, task, seeds, options.quick)
        run_sweep(list(made.values()), output_dir=options.work_dir, workers=options.workers)
        report["tasks"][task] = collected(options.work_dir, made, seeds, recorded(board))
        print(f"{task}\n{format_table(report['tasks'][task])}")
    default = options.work_dir if options.quick else ROOT / "results"
    path = options.output or default / "first-directions.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\n{(time.perf_counter() - began) / 60:.1f} min; written: {path}")


if __name__ == "__main__":
    main()
