"""`alora init`: the recipe that `alora fit` would run, with its data, to be changed and run."""

from __future__ import annotations

import argparse

from alora_trainer.basics.output import say, tell_loading
from alora_trainer.cli.answer import Answer
from alora_trainer.cli.commands.common import Subcommands
from alora_trainer.cli.commands.fit import add_fit_command, find_named, request_of


def add(commands: Subcommands) -> None:
    text = (
        "Look at your data and write a commented recipe for them, which `alora run` takes as it stands; without --general, "
        "text is sampled from the model for it, which takes minutes."
    )
    add_fit_command(commands, "init", text, execute)


def execute(arguments: argparse.Namespace, overrides: dict[str, str]) -> Answer:
    find_named(arguments)
    tell_loading()
    from alora_trainer.experiment.fit.whole_fit import init

    path = init(request_of(arguments, overrides), overwrite=arguments.overwrite, told=say)
    return Answer(
        f"recipe: {path}; run it with: alora run {path} (only `alora fit` scales the adapter and makes a promise)",
        {"recipe": str(path)},
    )
