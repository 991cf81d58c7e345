"""When does a chosen start pay? Longer trainings, ranks, learning rates, and a map of the model's own text.

    python benchmarks/first_directions_questions.py [--task openbookqa] [--seeds 0,1,2] [--workers 2]

Beside benchmarks/first_directions.py, whose settings are changed one at a time: four times as many steps; ranks 2 and 32; half
and double the learning rate; curvature of text that the model said itself, also in a quarter and in four times as many tokens,
and at temperature 0.7. Of those that train A it says, too, how much of the movement still lies in the directions that A began
with, as a share of its squared norm, the mean over weights. One seed is written when it is done, and what the report has is not
done again, if it was made with the same settings and libraries. Writes results/studies/first-directions-questions.json and
prints its table; `--quick` makes a few steps, to see that it runs.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from first_directions import (
    BOARD,
    asked,
    described,
    grid,
    recorded,
    results_of,
    summary,
    trained,
)
from safetensors.torch import load_file
from studies import report_head, spread, taken_over

from alora_trainer.basics.files import write_json
from alora_trainer.basics.output import configure_output
from alora_trainer.experiment.board.board_file import Board, read_board
from alora_trainer.experiment.report.results import environment
from alora_trainer.experiment.run.sweep import Grid, run_sweep

INIT, LAM, KEPT = "alora.init_adapter", "alora.lam", "kept_of_start"
PLAIN = ("default", "natural_gradient")
OWN = "general.self_text.tokens"
OWN_TEXT = {"general.train": "self", OWN: "16384"}
# Group -> (starts, strengths, settings over the benchmark's); the names with "frozen" train B alone.
GROUPS: dict[str, tuple[Sequence[str], Sequence[float], dict[str, str]]] = {
    "longer": (PLAIN, (0.0, 0.001), {"tune.max_steps": "240"}),
    "longer-frozen": (("contrastive", "natural_gradient"), (0.0,), {"tune.max_steps": "240"}),
    "rank-2": (PLAIN, (0.0,), {"lora.r": "2", "lora.lora_alpha": "8"}),
    "rank-2-frozen": (("contrastive",), (0.0,), {"lora.r": "2", "lora.lora_alpha": "8"}),
    "rank-32": (PLAIN, (0.0,), {"lora.r": "32", "lora.lora_alpha": "128"}),
    "rank-32-frozen": (("contrastive",), (0.0,), {"lora.r": "32", "lora.lora_alpha": "128"}),
    "half-rate": (PLAIN, (0.0,), {"tune.learning_rate": "0.001"}),
    "half-rate-frozen": (("contrastive",), (0.0,), {"tune.learning_rate": "0.001"}),
    "double-rate": (PLAIN, (0.0,), {"tune.learning_rate": "0.004"}),
    "double-rate-frozen": (("contrastive",), (0.0,), {"tune.learning_rate": "0.004"}),
    "own-text": (PLAIN, (0.001,), OWN_TEXT),
    "own-text-short": (PLAIN[1:], (0.001,), OWN_TEXT | {OWN: "4096", "curvature.tokens": "3072"}),
    "own-text-long": (PLAIN[1:], (0.001,), OWN_TEXT | {OWN: "65536", "curvature.tokens": "49152"}),
    "own-text-cool": (PLAIN[1:], (0.001,), OWN_TEXT | {"general.self_text.temperature": "0.7"}),
}
# What each of these starts begins with: a step that moves nothing.
START = ("longer", "rank-2", "rank-32", "half-rate", "double-rate")
NOTHING = {"tune.max_steps": "1", "tune.learning_rate": "1e-12"}


def grids(board: Board, task: str, seed: int, quick: bool) -> dict[str, Grid]:
    """What is trained with one seed, by group; the groups `begin-...` are where the others start."""
    make = partial(grid, board, task, seed, quick=quick)
    made = {"base": make("base", "base", {})}
    for name, (starts, strengths, settings) in GROUPS.items():
        frozen = {"alora.freeze_a": "true"} if name.endswith("frozen") else {}
        made[name] = make(name, "kfac", {INIT: starts, LAM: strengths}, settings | frozen)
        if name in START:
            made[f"begin-{name}"] = make(f"begin-{name}", "kfac", {INIT: starts, LAM: (0.0,)}, settings | NOTHING)
    return made


def kept(run: Path, begin: Path) -> float:
    """The share of B A's squared norm that lies in the row space of the A that it began with, the mean over weights."""
    after, before = (load_file(place / "adapter" / "adapter_model.safetensors") for place in (run, begin))
    shares = []
    for name, a in before.items():
        if "lora_A" not in name:
            continue
        directions = torch.linalg.qr(a.double().T).Q
        movement = after[name.replace("lora_A", "lora_B")].double() @ after[name].double()
        whole = float(movement.square().sum())
        if whole > 0:
            shares.append(float((movement @ directions).square().sum()) / whole)
    return sum(shares) / len(shares)


def answered(work: Path, made: dict[str, Grid], kinds: Sequence[str]) -> dict[str, dict[str, float]]:
    """The figures of every training of one seed, and of the plain ones what is left of their start."""
    groups = {group: one for group, one in made.items() if not group.startswith("begin-")}
    found = trained(work, groups, kinds)
    for group in START:
        folder, begin = (
            work / str(made[name].name) / f"seed-{made[name].seeds[0]}" for name in (group, f"begin-{group}")
        )
        begins = {name.split("@")[1].split(",")[0]: name for name in results_of(begin)}
        for name in results_of(folder):
            start = begins.get(name.split("@")[1].split(",")[0])
            if start is not None:
                found[f"{group} {name}"][KEPT] = kept(folder / name, begin / start)
    return found


def summary_of(done: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[dict[str, Any]]:
    """One entry a training, over seeds; with what is left of the start, where A is trained."""
    entries = summary(done)
    for entry in entries:
        shares = [seed[entry["name"]].get(KEPT) for seed in done.values() if entry["name"] in seed]
        if None not in shares:
            entry[KEPT] = spread(share for share in shares if share is not None)
    return entries


def answers_table(entries: Sequence[Mapping[str, Any]]) -> str:
    """The summary in Markdown, means over seeds: both rises and what was learned in nats, and what is left of the start."""
    base = next(entry for entry in entries if entry["name"].startswith("base"))["choices"]["mean"]
    lines = [
        "| setting | start | penalty | seeds | rise, recorded kinds | rise, other kinds | learned | left of the start (%) |",
        "|" + "---|" * 8,
    ]
    for entry in entries:
        if entry["name"].startswith("base"):
            continue
        described_start, penalty = described(entry["name"])
        setting, _, start = described_start.partition(": ")
        rises = [f"{entry[key]['mean']:.3f}" for key in ("rise_recorded", "rise_other")]
        left = f"{100 * entry[KEPT]['mean']:.0f}" if KEPT in entry else ""
        cells = [
            setting,
            start,
            penalty,
            entry["choices"]["seeds"],
            *rises,
            f"{base - entry['choices']['mean']:.3f}",
            left,
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work_dir", type=Path, default=Path("runs/first-directions-questions"))
    parser.add_argument("--output", type=Path, default=Path("results/studies/first-directions-questions.json"))
    parser.add_argument("--workers", type=int, default=2)
    board = read_board(BOARD)
    parser.add_argument("--task", choices=[task.name for task in board.tasks], default="openbookqa")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--quick", action="store_true", help="a few steps and items, to see that it runs")
    options = parser.parse_args()
    began = time.monotonic()
    configure_output()
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    path = options.work_dir / "first-directions-questions.json" if options.quick else options.output
    here, kinds = environment() | {"threads": 1}, recorded(board)
    wanted = asked(board) | {
        "task": options.task,
        "groups": {name: list(map(str, one)) for name, one in GROUPS.items()},
    }
    done: dict[str, Any] = {} if options.quick else taken_over(path, wanted, here).get("trainings", {})
    for seed in options.seeds.split(",")[: 1 if options.quick else None]:
        if seed not in done:
            made = grids(board, options.task, int(seed), options.quick)
            run_sweep(list(made.values()), output_dir=options.work_dir, workers=options.workers)
            done[seed] = answered(options.work_dir, made, kinds)
        report = {
            **report_head(here),
            "asked": wanted,
            "summary": summary_of(done),
            "trainings": done,
        }
        write_json(path, report)
    print(answers_table(summary_of(done)))
    print(f"\n{(time.monotonic() - began) / 60:.1f} min; written: {path}")


if __name__ == "__main__":
    main()
