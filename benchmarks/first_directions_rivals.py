"""Rivals' starts beside ours: PEFT's, and those of papers, each as its method is, at several learning rates.

    python benchmarks/first_directions_rivals.py [--tasks ...] [--rates 0.002 ...] [--seeds 0,1,2] [--workers 2] [--minutes N]

Tasks, steps and kinds of text are those of benchmarks/first_directions.py, and so is the measure: how much the cross-entropy of
general text rises, on the kinds that curvature, covariances and null spaces are measured on and on the others apart, and the
cross-entropy over choices. PEFT's own start, natural and contrastive are trained here at the rates that the other benchmark has
not; at its rate they are read from its report (--starts). A start changes how much is learned at a rate, so that one rate alone
would be unfair to some; those that move far are trained at an eighth of it, too.

One task, seed and rate is written when it is done, and what the report has is not done again, if it was made with the same
settings and libraries, nor is what was finished in the work folder. After --minutes no further one is begun. Writes
results/studies/first-directions-rivals.json and prints its tables; `--quick` makes a few steps, to see that it runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from first_directions import BOARD, FIGURES, asked, grid, recorded, trained
from studies import report_head, spread, taken_over

from alora_trainer.basics.files import write_json
from alora_trainer.basics.output import configure_output
from alora_trainer.experiment.board.board_file import Board, read_board
from alora_trainer.experiment.report.results import environment
from alora_trainer.experiment.run.sweep import Grid, run_sweep

# Ours, and where the other benchmark has them at its rate.
OURS = {
    "lora": "held kfac@init_adapter=default,lam=0.0",
    "lora_contrastive": "held kfac@init_adapter=contrastive,lam=0.0",
    "lora_natural": "held kfac@init_adapter=natural_gradient,lam=0.0",
}
RIVALS = (
    "lora_ga",
    "eva",
    "corda_kpm",
    "pissa",
    "olora",
    "orthogonal",
    "mica",
    "osf",
    "lora_null",
    "lora_null_frozen",
    "sc_lora",
    "oplora",
    "clora",
)
RATE = 0.002  # of benchmarks/first_directions.py
# Starts that move a base model far within a few steps: they have a rate of an eighth, too.
FAR, LOW = ("lora_ga", "eva", "pissa", "olora", "orthogonal", "sc_lora"), RATE / 8


def grids(board: Board, task: str, seed: int, rate: float, quick: bool) -> dict[str, Grid]:
    """What is trained with one seed at one rate."""
    methods = {RATE: RIVALS, LOW: FAR}.get(rate, (*OURS, *RIVALS))
    return {
        "base": grid(board, task, seed, "base", "base", {}, quick=quick),
        "starts": grid(
            board, task, seed, "starts", f"[{', '.join(methods)}]", {"tune.learning_rate": [rate]}, quick=quick
        ),
    }


def own(trainings: Mapping[str, Mapping[str, float]]) -> dict[str, Mapping[str, float]]:
    """PEFT's own start and our two out of the other benchmark's trainings of one task and seed."""
    return {method: trainings[name] for method, name in OURS.items()}


def summary(done: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]) -> list[dict[str, Any]]:
    """Of one task, one entry a method and rate, over the seeds that are done; `learned` in nats over choices."""
    entries = []
    for rate, seeds in sorted(done.items(), key=lambda one: -float(one[0])):
        for method in dict.fromkeys(itertools.chain.from_iterable(seeds.values())):
            if method == "base":
                continue
            each = [
                {**seed[method], "learned": seed["base"]["choices"] - seed[method]["choices"]}
                for seed in seeds.values()
            ]
            entries.append(
                {"method": method, "rate": float(rate)}
                | {key: spread(one[key] for one in each) for key in (*FIGURES, "learned")}
            )
    return entries


def format_table(entries: Sequence[Mapping[str, Any]]) -> str:
    """One row a method and rate, mean and standard deviation over seeds."""
    keys, factors, digits = ("rise_recorded", "rise_other", "learned", "accuracy"), (1, 1, 1, 100), (3, 3, 3, 1)
    lines = [
        "| method | rate | seeds | rise, recorded kinds | rise, other kinds | learned (nats) | accuracy (%) |",
        "|" + "---|" * 7,
    ]
    for entry in entries:
        cells = [f"`{entry['method']}`", f"{entry['rate']:g}", str(entry["learned"]["seeds"])]
        for key, factor, places in zip(keys, factors, digits, strict=True):
            mean, deviation = entry[key]["mean"], entry[key]["standard_deviation"]
            error = "" if deviation is None else f" ± {factor * deviation:.{places}f}"
            cells.append(f"{factor * mean:.{places}f}{error}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def cells(options: argparse.Namespace) -> Iterator[tuple[str, float, str]]:
    """Seed, rate and task, in the order in which they are trained."""
    seeds, rates = options.seeds.split(","), options.rates
    yield from itertools.product(
        seeds[: 1 if options.quick else None], rates[: 1 if options.quick else None], options.tasks
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work_dir", type=Path, default=Path("runs/first-directions-rivals"))
    parser.add_argument("--output", type=Path, default=Path("results/studies/first-directions-rivals.json"))
    parser.add_argument("--starts", type=Path, default=Path("results/studies/first-directions.json"))
    parser.add_argument("--workers", type=int, default=2)
    board = read_board(BOARD)
    known = [task.name for task in board.tasks]
    parser.add_argument("--tasks", nargs="+", choices=known, default=known)
    parser.add_argument("--rates", type=float, nargs="+", default=[RATE, RATE / 2, LOW])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no further cell after so many")
    parser.add_argument("--quick", action="store_true", help="a few steps and items, to see that it runs")
    options = parser.parse_args()
    began = time.monotonic()
    configure_output()
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    path = options.work_dir / "first-directions-rivals.json" if options.quick else options.output
    starts = json.loads(options.starts.read_text())
    here, kinds = environment() | {"threads": 1}, recorded(board)
    wanted = asked(board) | {"rivals": RIVALS}
    done: dict[str, Any] = {} if options.quick else taken_over(path, wanted, here).get("trainings", {})
    for seed, rate, task in cells(options):
        found = done.get(task, {}).get(f"{rate:g}", {})
        if seed not in found and time.monotonic() - began < 60 * options.minutes:
            work = options.work_dir / f"rate-{rate:g}"
            made = grids(board, task, int(seed), rate, options.quick)
            run_sweep(list(made.values()), output_dir=work, workers=options.workers)
            named = {name.partition(" ")[2].partition("@")[0]: one for name, one in trained(work, made, kinds).items()}
            ours = own(starts["trainings"][task][seed]) if rate == RATE and not options.quick else {}
            done.setdefault(task, {})[f"{rate:g}"] = found | {seed: ours | named}
        report = {
            **report_head(here),
            "asked": wanted,
            "recorded": kinds,
            "summary": {one: summary(rates) for one, rates in done.items()},
            "trainings": done,
        }
        write_json(path, report)
    for task, entries in report["summary"].items():
        print(f"{task}\n{format_table(entries)}")
    print(f"\n{(time.monotonic() - began) / 60:.1f} min; written: {path}")


if __name__ == "__main__":
    main()
