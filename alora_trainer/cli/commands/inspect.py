"""`alora inspect`: what an importance map is, from its headers alone."""

from __future__ import annotations

import argparse

from alora_trainer.basics.tables import terminal_width
from alora_trainer.cli.answer import Answer
from alora_trainer.cli.commands.common import Subcommands, add_command


def add(commands: Subcommands) -> None:
    text = "Say what an importance map is, from its headers alone: nothing large is read or fetched."
    inspect = add_command(commands, "inspect", text, execute)
    inspect.add_argument(
        "source", metavar="REPO_OR_FOLDER", help="organisation/name, organisation/name@revision or a folder"
    )
    inspect.add_argument("--revision", help="a branch, a tag or a commit (default: main)")


def execute(arguments: argparse.Namespace, overrides: dict[str, str]) -> Answer:
    from alora_trainer.artefact.hub.inspect import inspect_map

    found = inspect_map(arguments.source, revision=arguments.revision)
    return Answer(found.text(terminal_width()), found.to_json())
