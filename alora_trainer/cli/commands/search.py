"""`alora search`: the public importance maps for a base model."""

from __future__ import annotations

import argparse

from alora_trainer.basics.output import say
from alora_trainer.cli.commands.common import Subcommands, add_command


def add(commands: Subcommands) -> None:
    text = "List the public importance maps for a base model, to start tuning with --importance REPO."
    search = add_command(commands, "search", text, execute)
    search.add_argument("base_model", metavar="BASE_MODEL", help="the base model's Hub id")
    search.add_argument("--limit", type=int, default=20, help="list this many at most (default: 20)")


def execute(arguments: argparse.Namespace, overrides: dict[str, str]) -> int:
    from alora_trainer.artefact.hub.search import search_maps, table

    found = search_maps(arguments.base_model, limit=arguments.limit)
    if not found:
        say(f"no public importance map for {arguments.base_model}: make one with `alora record`")
        return 0
    say(table(found))
    say(f"\nalora tune RECIPE.yaml --method alora --importance {found[0].repo_id}")
    return 0
