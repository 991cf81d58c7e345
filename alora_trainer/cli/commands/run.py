"""`alora run`: a recipe from end to end."""

from __future__ import annotations

import argparse

from alora_trainer.cli.answer import Answer
from alora_trainer.cli.commands.common import Subcommands, add_recipe_command, load, output_dir, results_answer


def add(commands: Subcommands) -> None:
    text = "Run a recipe from end to end: record, tune and evaluate every method, and print the table."
    command = add_recipe_command(commands, "run", text, run)
    command.add_argument(
        "--importance",
        metavar="FOLDER_OR_HUB_ID",
        help="start from and hold this importance map, instead of recording one; general.train is not needed then",
    )


def run(arguments: argparse.Namespace, overrides: dict[str, str], variables: dict[str, str] | None = None) -> Answer:
    """Run the recipe; `variables` are for its ``${NAME}``, over the process's environment."""
    recipe = load(arguments, overrides, variables)
    from alora_trainer.experiment.run.whole_recipe import run_recipe

    folder = output_dir(arguments, recipe)
    given = getattr(arguments, "importance", None)  # `alora demo`, which records, has no such option
    results = run_recipe(recipe, output_dir=folder, overwrite=arguments.overwrite, importance=given)
    return results_answer(results, folder)
