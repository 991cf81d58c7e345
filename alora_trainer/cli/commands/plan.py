"""`alora plan`: what a recipe will take, before anything is downloaded."""

from __future__ import annotations

import argparse
from pathlib import Path

from alora_trainer.cli.answer import Answer
from alora_trainer.cli.commands.common import Subcommands, add_command, load


def add(commands: Subcommands) -> None:
    text = "Say what a recipe will take (memory, steps, time, disk), and what would fit, without downloading anything."
    plan = add_command(commands, "plan", text, execute)
    plan.set_defaults(takes_overrides=True)
    plan.add_argument("recipe", metavar="RECIPE", help="a YAML file, such as those in recipes/")
    plan.add_argument(
        "--device", default="H100", help="H100, A800, A100, 4090, or probe to measure this machine (default: H100)"
    )
    plan.add_argument("--config", metavar="FILE", help="the model's config.json, where it is neither local nor known")
    plan.add_argument(
        "--length",
        type=int,
        metavar="TOKENS",
        help="of a domain item at most (default: the recipe's domain.max_length)",
    )
    plan.add_argument("--gpus", type=int, default=1, metavar="N", help="how many devices train together (default: 1)")
    plan.add_argument(
        "--sharding",
        default="none",
        help="none (torchrun: the model whole on each), zero2, fsdp2 or zero3 (default: none); the plan is each device's",
    )
    plan.add_argument("--output", metavar="FILE", help="write the plan as JSON, too")


def execute(arguments: argparse.Namespace, overrides: dict[str, str]) -> Answer:
    recipe = load(arguments, overrides)
    from alora_trainer.basics.files import write_json
    from alora_trainer.experiment.recipe.plan.data_check import check_data
    from alora_trainer.experiment.recipe.plan.devices import get_device
    from alora_trainer.experiment.recipe.plan.estimate import plan_recipe
    from alora_trainer.experiment.recipe.plan.report import as_json, format_plan
    from alora_trainer.experiment.recipe.plan.sharding import Sharding

    data = check_data(recipe)
    plan = plan_recipe(
        recipe,
        get_device(arguments.device),
        config_file=arguments.config,
        length=arguments.length,
        sharding=Sharding(arguments.gpus, arguments.sharding),
    )
    if arguments.output is not None:
        write_json(Path(arguments.output), as_json(plan))
    return Answer("\n".join([format_plan(plan), "", "The data:", *(f"  {line}" for line in data)]), as_json(plan))
