"""`alora demo`: the embedded default."""

from __future__ import annotations

import argparse
from pathlib import Path

from alora_trainer.cli.answer import Answer
from alora_trainer.cli.commands.common import Subcommands, add_recipe_command, load
from alora_trainer.cli.commands.run import run

_FOLDER = "demo-run"


def add(commands: Subcommands) -> None:
    text = "Compare four methods on a small model and data that come with the package."
    add_recipe_command(commands, "demo", text, execute, recipe=False, folder=_FOLDER)


def execute(arguments: argparse.Namespace, overrides: dict[str, str]) -> Answer:
    from alora_trainer.experiment import demo

    arguments.recipe = demo.RECIPE
    arguments.output_dir = arguments.output_dir or _FOLDER
    data = Path(arguments.output_dir) / "demo-data"
    load(arguments, overrides, demo.variables(data))  # a mistake is known before the data are written
    return run(arguments, overrides, demo.prepare(data))
