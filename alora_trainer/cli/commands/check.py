"""`alora check`: a recipe's keys, types and names, without anything heavy."""

from __future__ import annotations

import argparse

from alora_trainer.cli.answer import Answer
from alora_trainer.cli.commands.common import Subcommands, add_command
from alora_trainer.cli.commands.listing import add_listings


def add(commands: Subcommands) -> None:
    text = "Check a recipe's keys, values and names in under a second; --list-methods and --list-settings say what there is."
    check = add_command(commands, "check", text, execute)
    check.set_defaults(takes_overrides=True)
    check.add_argument("recipe", metavar="RECIPE", help="a YAML file, such as those in recipes/")
    add_listings(check)


def execute(arguments: argparse.Namespace, overrides: dict[str, str]) -> Answer:
    from alora_trainer.experiment.recipe.schema.check import check_file

    check_file(arguments.recipe, overrides)
    text = f"{arguments.recipe}: keys, types and names are right; `alora plan {arguments.recipe}` opens the data"
    return Answer(text, {"recipe": str(arguments.recipe), "valid": True})
