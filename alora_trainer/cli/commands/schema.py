"""`alora schema`: the JSON Schema of a recipe, for editors."""

from __future__ import annotations

import argparse

from alora_trainer.cli.answer import Answer
from alora_trainer.cli.commands.common import Subcommands, add_command


def add(commands: Subcommands) -> None:
    text = "Print the JSON Schema of a recipe, which editors complete and check by, or the page of all settings."
    schema = add_command(commands, "schema", text, execute, json=False)
    schema.add_argument("--page", action="store_true", help="print the settings as a page (docs/recipe_settings.md)")
    schema.add_argument(
        "--here",
        action="store_true",
        help="by what is installed here, with plugins and these versions of peft and transformers",
    )


def execute(arguments: argparse.Namespace, overrides: dict[str, str]) -> Answer:
    if arguments.page:
        from alora_trainer.experiment.recipe.schema.lists import settings_page

        text = settings_page()
    elif arguments.here:
        from alora_trainer.experiment.recipe.schema.build import as_text, recipe_schema

        text = as_text(recipe_schema())
    else:
        from alora_trainer.experiment.recipe.schema.known import schema_text

        text = schema_text()
    return Answer(text.rstrip("\n"), None)
