"""`alora sweep`: recipes for several values of their settings and several seeds."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from alora_trainer.basics.output import tell_loading
from alora_trainer.basics.tables import terminal_width
from alora_trainer.cli.answer import Answer
from alora_trainer.cli.commands.common import Subcommands, add_recipe_command, add_workers, workers_of


def add(commands: Subcommands) -> None:
    text = "Run a recipe (or those of a sweep file) over settings and seeds, sharing the recording between the cells of a seed."
    sweep = add_recipe_command(commands, "sweep", text, execute, folder="runs/NAME-sweep, NAME being the recipe's file")
    sweep.add_argument(
        "--over",
        action="append",
        nargs="+",
        metavar="SETTING=VALUES",
        help="what to vary, such as lam=0.01,0.1,1 (a setting of alora) or tune.learning_rate=1e-3,2e-3",
    )
    sweep.add_argument("--only", metavar="METHODS", help="vary the settings of these methods alone, such as alora")
    sweep.add_argument("--seeds", metavar="SEEDS", help="such as 0,1,2 or 0-4 (default: 0)")
    add_workers(sweep)


def execute(arguments: argparse.Namespace, overrides: dict[str, str]) -> Answer:
    tell_loading()
    from alora_trainer.experiment.run.run import check_single_process
    from alora_trainer.experiment.run.sweep import Grid, parse_over, parse_seeds, read_sweep_file, run_sweep

    check_single_process()
    path = Path(arguments.recipe)
    grids = read_sweep_file(path, overrides) or [Grid(path, overrides)]
    if arguments.over is not None:
        over = parse_over([text for group in arguments.over for text in group])
        grids = [dataclasses.replace(grid, over=over) for grid in grids]
    if arguments.only is not None:
        grids = [dataclasses.replace(grid, only=arguments.only.split(",")) for grid in grids]
    if arguments.seeds is not None:
        grids = [dataclasses.replace(grid, seeds=parse_seeds(arguments.seeds)) for grid in grids]
    folder = Path(arguments.output_dir) if arguments.output_dir is not None else Path("runs") / f"{path.stem}-sweep"
    runs = run_sweep(grids, output_dir=folder, workers=workers_of(arguments), overwrite=arguments.overwrite)
    from alora_trainer.experiment.report.comparison_table import format_comparison
    from alora_trainer.experiment.report.gather import by_task, read_runs

    finished = [run for run in runs if (run / "results.json").is_file()]
    tables = [format_comparison(one, terminal_width()) for one in (by_task(read_runs(finished)) if finished else ())]
    written = [str(run / "results.json") for run in runs]
    lines = [*(f"results: {path}" for path in written), f"a report of all: alora report {folder}"]
    return Answer("\n\n".join([*tables, "\n".join(lines)]), {"results": written})
