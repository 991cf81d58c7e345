"""What several commands share: their options, the recipe that they read, and the table that they print."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from alora_trainer.basics.output import tell_loading
from alora_trainer.basics.tables import terminal_width
from alora_trainer.cli.answer import Answer
from alora_trainer.cli.commands.listing import add_listings

if TYPE_CHECKING:
    from alora_trainer.experiment.recipe.recipe import Recipe
    from alora_trainer.experiment.report.results import RunResults
    from alora_trainer.experiment.run.scheduling.workers import Workers

Subcommands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Execute: TypeAlias = Callable[[argparse.Namespace, dict[str, str]], Answer]

_OVERRIDES = (
    "Every setting of the recipe can be overridden: {example} "
    "(paths in overrides start from the recipe's folder, as in the recipe)."
)


def add_command(
    commands: Subcommands, name: str, text: str, execute: Execute, *, json: bool = True
) -> argparse.ArgumentParser:
    """A parser for the command `name` that takes no recipe and no overrides.

    Args:
        json: whether its answer can be had as JSON; not where it is a file of a format of its own.
    """
    command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    command.add_argument("--quiet", action="store_true", help="no progress: results, warnings and errors alone")
    if json:
        command.add_argument(
            "--json",
            action="store_true",
            help="the result as JSON alone on standard output, all else on standard error",
        )
    command.set_defaults(execute=execute, takes_overrides=False)
    return command


def add_workers(command: argparse.ArgumentParser) -> None:
    """``--workers`` and ``--slurm``; see `workers_of`."""
    command.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="trainings at once: processes, each with a GPU of its own where there are several, or jobs (default: 1)",
    )
    command.add_argument(
        "--slurm",
        nargs="*",
        metavar="KEY=VALUE",
        help="submit each training as a job of Slurm with these parameters of submitit, such as slurm_partition=gpu "
        "gpus_per_node=1 timeout_min=240; this command waits for them",
    )


def workers_of(arguments: argparse.Namespace) -> Workers:
    """What `add_workers` asked for.

    Raises:
        ALoRAError: a count below 1, or a parameter that is no KEY=VALUE.
    """
    import yaml

    from alora_trainer.errors import ALoRAError
    from alora_trainer.experiment.run.scheduling.workers import Workers

    if arguments.slurm is None:
        return Workers(arguments.workers)
    parameters = {}
    for text in arguments.slurm:
        key, equals, value = text.partition("=")
        if not (key and equals and value):
            raise ALoRAError(f"--slurm {text}: write it as KEY=VALUE, such as timeout_min=240")
        parameters[key] = yaml.safe_load(value)
    return Workers(arguments.workers, parameters)


def add_recipe_command(
    commands: Subcommands,
    name: str,
    text: str,
    execute: Execute,
    *,
    recipe: bool = True,
    folder: str = "the recipe's output_dir, or runs/NAME",
    example: str = "--tune.learning_rate 1e-4 --methods base,lora --seed 1",
) -> argparse.ArgumentParser:
    """A parser for the command `name`, which works in an output folder by a recipe with overrides.

    Args:
        recipe: whether the recipe is an argument (or the command's own).
        folder: where the command works if it is not told, for the help.
        example: of overrides, for the help.
    """
    command = add_command(commands, name, text, execute)
    command.epilog = _OVERRIDES.format(example=example)
    command.set_defaults(takes_overrides=True)
    if recipe:
        command.add_argument("recipe", metavar="RECIPE", help="a YAML file, such as those in recipes/")
    command.add_argument(
        "--output_dir",
        metavar="DIR",
        help=f"where everything is written; the same command with the same folder goes on where it was stopped "
        f"(default: {folder})",
    )
    add_listings(command)
    command.add_argument(
        "--overwrite", action="store_true", help="make anew what other settings made in the output folder"
    )
    return command


def load(
    arguments: argparse.Namespace,
    overrides: dict[str, str],
    variables: dict[str, str] | None = None,
    *,
    several_processes: bool = False,
) -> Recipe:
    """The recipe that the arguments name, checked; in one process, unless the command is for several."""
    from alora_trainer.experiment.recipe.schema.check import check_file

    check_file(arguments.recipe, overrides, variables=variables)  # a mistake is told before anything heavy is imported
    tell_loading()
    from alora_trainer.experiment.run.run import check_single_process

    if not several_processes:
        check_single_process()
    from alora_trainer.experiment.recipe.reading import load_recipe

    recipe = load_recipe(arguments.recipe, overrides, variables=variables)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # those of loading and saving weights; trainings and evaluations have bars of their own
    return recipe


def output_dir(arguments: argparse.Namespace, recipe: Recipe) -> Path:
    """Where the command works: what it was told, or what the recipe says, or a folder of the recipe's name."""
    if arguments.output_dir is not None:
        return Path(arguments.output_dir)
    if recipe.output_dir is not None:
        from alora_trainer.experiment.recipe.settings import resolve_path

        return resolve_path(recipe.output_dir, recipe.base)
    return Path("runs") / recipe.name


def results_answer(results: RunResults, folder: Path) -> Answer:
    """The table of results.json; as data, the file's content."""
    from alora_trainer.experiment.report.text_table import format_table

    table = format_table(results.methods, terminal_width())
    return Answer(f"{table}\nresults: {folder / 'results.json'}", results.to_json())
