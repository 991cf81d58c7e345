"""`alora record`: stage A alone."""

from __future__ import annotations

import argparse

from alora_trainer.cli.answer import Answer
from alora_trainer.cli.commands.common import Subcommands, add_recipe_command, load, output_dir


def add(commands: Subcommands) -> None:
    add_recipe_command(commands, "record", "Stage A alone: record importance on general text.", execute)


def execute(arguments: argparse.Namespace, overrides: dict[str, str]) -> Answer:
    recipe = load(arguments, overrides, several_processes=True)
    from alora_trainer.experiment.run.whole_recipe import record_recipe

    folder = record_recipe(recipe, output_dir=output_dir(arguments, recipe), overwrite=arguments.overwrite)
    return Answer(f"importance map: {folder}", {"map": str(folder)})
