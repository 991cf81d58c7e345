"""`alora tune`: stage B alone."""

from __future__ import annotations

import argparse

from alora_trainer.cli.answer import Answer
from alora_trainer.cli.commands.common import Subcommands, add_recipe_command, load, output_dir


def add(commands: Subcommands) -> None:
    tune = add_recipe_command(commands, "tune", "Stage B alone: train one method on the domain.", execute)
    tune.add_argument("--method", required=True, help="any that trains: --list-methods lists them")
    tune.add_argument("--importance", metavar="FOLDER_OR_HUB_ID", help="start from and hold this importance map")


def execute(arguments: argparse.Namespace, overrides: dict[str, str]) -> Answer:
    from alora_trainer.experiment.methods import get_method

    method = get_method(arguments.method)
    recipe = load(arguments, overrides, several_processes=True)
    from alora_trainer.experiment.run.whole_recipe import tune_recipe

    folder = tune_recipe(
        recipe,
        method,
        output_dir=output_dir(arguments, recipe),
        overwrite=arguments.overwrite,
        importance=arguments.importance,
    )
    return Answer(f"adapter: {folder}", {"adapter": str(folder)})
