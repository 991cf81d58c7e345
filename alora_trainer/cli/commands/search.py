"""`alora search`: the public importance maps for a base model."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from alora_trainer.basics.tables import terminal_width
from alora_trainer.cli.answer import Answer
from alora_trainer.cli.commands.common import Subcommands, add_command


def add(commands: Subcommands) -> None:
    text = "List the public importance maps for a base model, to start tuning with --importance REPO."
    search = add_command(commands, "search", text, execute)
    search.add_argument("base_model", metavar="BASE_MODEL", help="the base model's Hub id")
    search.add_argument("--limit", type=int, default=20, help="list this many at most (default: 20)")


def execute(arguments: argparse.Namespace, overrides: dict[str, str]) -> Answer:
    from alora_trainer.artefact.hub.search import search_maps, table

    found = search_maps(arguments.base_model, limit=arguments.limit)
    if not found:
        return Answer(f"no public importance map for {arguments.base_model}: make one with `alora record`", [])
    use = f"alora tune RECIPE.yaml --method alora --importance {found[0].repo_id}"
    return Answer(f"{table(found, terminal_width())}\n\n{use}", [asdict(one) for one in found])
