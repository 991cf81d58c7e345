"""`alora eval`: score what was trained before, an adapter, or the base model."""

from __future__ import annotations

import argparse

from alora_trainer.commands.common import Subcommands, add_recipe_command, load, output_dir, show


def add(commands: Subcommands) -> None:
    text = "Evaluate a method trained before, an adapter, or (with neither) the base model."
    evaluate = add_recipe_command(commands, "eval", text, execute)
    which = evaluate.add_mutually_exclusive_group()
    which.add_argument("--method", help="one that `alora tune` or `alora run` trained in the output folder")
    which.add_argument("--adapter", metavar="FOLDER", help="any PEFT adapter of the recipe's base model")


def execute(arguments: argparse.Namespace, overrides: dict[str, str]) -> int:
    from alora_trainer.methods import get_method

    method = get_method(arguments.method) if arguments.method is not None else None
    recipe = load(arguments, overrides)
    from alora_trainer.run import evaluate_recipe

    folder = output_dir(arguments, recipe)
    results = evaluate_recipe(
        recipe, output_dir=folder, overwrite=arguments.overwrite, method=method, adapter=arguments.adapter
    )
    show(results, folder)
    return 0
