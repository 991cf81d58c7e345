"""`alora sweep`: a recipe for several values of its settings and several seeds."""

from __future__ import annotations

import argparse
from pathlib import Path

from alora_trainer.commands.common import Subcommands, add_recipe_command, load, output_dir


def add(commands: Subcommands) -> None:
    text = "Run a recipe over a grid of settings and seeds, sharing the recording between the cells of a seed."
    sweep = add_recipe_command(commands, "sweep", text, execute)
    sweep.add_argument(
        "--over",
        action="append",
        nargs="+",
        default=[],
        metavar="SETTING=VALUES",
        help="what to vary, such as lam=0.01,0.1,1 (a setting of alora) or tune.learning_rate=1e-3,2e-3",
    )
    sweep.add_argument("--seeds", default="0", metavar="SEEDS", help="such as 0,1,2 or 0-4 (default: 0)")
    sweep.add_argument("--workers", type=int, default=1, metavar="N", help="processes to work with (default: 1)")


def execute(arguments: argparse.Namespace, overrides: dict[str, str]) -> int:
    recipe = load(arguments, overrides)
    from alora_trainer.sweep import parse_over, parse_seeds, run_sweep

    folder = Path(arguments.output_dir) if arguments.output_dir is not None else output_dir(arguments, recipe) / "sweep"
    runs = run_sweep(
        arguments.recipe,
        overrides,
        parse_over([text for group in arguments.over for text in group]),
        parse_seeds(arguments.seeds),
        output_dir=folder,
        workers=arguments.workers,
        overwrite=arguments.overwrite,
    )
    for run in runs:
        print(f"results: {run / 'results.json'}")
    print(f"a report of all: alora report {folder}")
    return 0
