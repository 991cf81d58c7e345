"""`alora record`: stage A alone."""

from __future__ import annotations

import argparse

from alora_trainer.basics.output import say
from alora_trainer.cli.commands.common import Subcommands, add_recipe_command, load, output_dir


def add(commands: Subcommands) -> None:
    add_recipe_command(commands, "record", "Stage A alone: record importance on general text.", execute)


def execute(arguments: argparse.Namespace, overrides: dict[str, str]) -> int:
    recipe = load(arguments, overrides, several_processes=True)
    from alora_trainer.experiment.run.whole_recipe import record_recipe

    folder = record_recipe(recipe, output_dir=output_dir(arguments, recipe), overwrite=arguments.overwrite)
    say(f"importance map: {folder}")
    return 0
