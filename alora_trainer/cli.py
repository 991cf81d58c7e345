"""The `alora` command. Parses arguments only; heavy imports wait until a command runs."""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alora_trainer.errors import ALoRAError

if TYPE_CHECKING:
    from alora_trainer.methods import Method
    from alora_trainer.recipe import Recipe

_OVERRIDES = (
    "Every setting of the recipe can be overridden: --tune.learning_rate 1e-4 --methods base,lora --seed 1 "
    "(paths in overrides start from the recipe's folder, as in the recipe)."
)


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command; what it does not know are overrides, for `parse_overrides`."""
    from alora_trainer import __version__

    parser = argparse.ArgumentParser(
        prog="alora",
        description="Tune a language model on a domain while holding what mattered for its general ability.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"alora-trainer {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, *, recipe: bool = True) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, epilog=_OVERRIDES, allow_abbrev=False)
        if recipe:
            command.add_argument("recipe", metavar="RECIPE", help="a YAML file, such as those in recipes/")
        command.add_argument(
            "--output_dir",
            metavar="DIR",
            help="where everything is written; the same command with the same folder goes on where it was stopped "
            "(default: the recipe's output_dir, or runs/NAME)",
        )
        command.add_argument(
            "--overwrite", action="store_true", help="make anew what other settings made in the output folder"
        )
        return command

    add("demo", "Compare all methods on a small model and data that come with the package.", recipe=False)
    add("run", "Run a recipe from end to end: record, tune and evaluate every method, and print the table.")
    add("record", "Stage A alone: record importance on general text.")
    tune = add("tune", "Stage B alone: train one method on the domain.")
    tune.add_argument("--method", required=True, help="lora, lora_ab or alora")
    tune.add_argument("--importance", metavar="FOLDER_OR_HUB_ID", help="start from and hold this importance map")
    evaluate = add("eval", "Evaluate a method trained before, an adapter, or (with neither) the base model.")
    which = evaluate.add_mutually_exclusive_group()
    which.add_argument("--method", help="one that `alora tune` or `alora run` trained in the output folder")
    which.add_argument("--adapter", metavar="FOLDER", help="any PEFT adapter of the recipe's base model")
    return parser


def parse_overrides(arguments: Sequence[str], options: Sequence[str] = ()) -> dict[str, str]:
    """Overrides by dotted name, from ``--section.key value`` and ``--section.key=value``.

    Args:
        arguments: what the parser did not know.
        options: the command's own options, to name the one that was meant.

    Raises:
        ALoRAError: an argument is no override, or has no value.
    """
    overrides: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        key, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not key:
            raise ALoRAError(f"unexpected argument {argument}: overrides are written --section.key VALUE")
        near = difflib.get_close_matches(key, options, n=1, cutoff=0.75)
        if near:
            raise ALoRAError(f"unknown option --{key}: did you mean --{near[0]}?")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ALoRAError(f"--{key} has no value: write --{key} VALUE")
            value = rest.pop(0)
        overrides[key] = value
    return overrides


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the process's exit status.

    0: done; 2: the user's mistake, told in one line; 130: interrupted. Any other error keeps its traceback.
    """
    parser = make_parser()
    arguments, rest = parser.parse_known_args(argv)
    _configure_output()
    try:
        own = [name for name in vars(arguments) if name not in ("command", "recipe")]
        overrides = parse_overrides(rest, own)
        return _COMMANDS[arguments.command](arguments, overrides)
    except ALoRAError as error:
        print(f"alora: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nalora: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of the table went away; without this the interpreter complains once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _configure_output() -> None:
    """Progress of ours on standard error; from libraries only what is an error."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    own = logging.getLogger("alora_trainer")
    own.handlers = [handler]
    own.setLevel(logging.INFO)
    own.propagate = False
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DATASETS_VERBOSITY", "error")
    for noisy in ("lm_eval", "lm-eval", "peft", "accelerate", "huggingface_hub"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def _demo(arguments: argparse.Namespace, overrides: dict[str, str]) -> int:
    from alora_trainer import demo

    arguments.recipe = demo.RECIPE
    arguments.output_dir = arguments.output_dir or "demo-run"
    return _run(arguments, overrides, demo.prepare(Path(arguments.output_dir) / "demo-data"))


def _run(arguments: argparse.Namespace, overrides: dict[str, str], variables: dict[str, str] | None = None) -> int:
    recipe = _load(arguments, overrides, variables)
    from alora_trainer.run import run_recipe

    folder = _output_dir(arguments, recipe)
    _show(run_recipe(recipe, output_dir=folder, overwrite=arguments.overwrite), folder)
    return 0


def _record(arguments: argparse.Namespace, overrides: dict[str, str]) -> int:
    recipe = _load(arguments, overrides)
    from alora_trainer.run import record_recipe

    folder = record_recipe(recipe, output_dir=_output_dir(arguments, recipe), overwrite=arguments.overwrite)
    print(f"importance map: {folder}")
    return 0


def _tune(arguments: argparse.Namespace, overrides: dict[str, str]) -> int:
    method = _method(arguments.method)
    recipe = _load(arguments, overrides)
    from alora_trainer.run import tune_recipe

    folder = tune_recipe(
        recipe,
        method,
        output_dir=_output_dir(arguments, recipe),
        overwrite=arguments.overwrite,
        importance=arguments.importance,
    )
    print(f"adapter: {folder}")
    return 0


def _eval(arguments: argparse.Namespace, overrides: dict[str, str]) -> int:
    method = _method(arguments.method) if arguments.method is not None else None
    recipe = _load(arguments, overrides)
    from alora_trainer.run import evaluate_recipe

    folder = _output_dir(arguments, recipe)
    results = evaluate_recipe(
        recipe, output_dir=folder, overwrite=arguments.overwrite, method=method, adapter=arguments.adapter
    )
    _show(results, folder)
    return 0


_COMMANDS = {"demo": _demo, "run": _run, "record": _record, "tune": _tune, "eval": _eval}


def _method(name: str) -> Method:
    from alora_trainer.methods import get_method

    return get_method(name)


def _load(arguments: argparse.Namespace, overrides: dict[str, str], variables: dict[str, str] | None = None) -> Recipe:
    from alora_trainer.pipeline import check_single_process

    check_single_process()
    from alora_trainer.recipe import load_recipe

    recipe = load_recipe(arguments.recipe, overrides, variables=variables)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # those of loading and saving weights; trainings and evaluations have bars of their own
    return recipe


def _output_dir(arguments: argparse.Namespace, recipe: Recipe) -> Path:
    if arguments.output_dir is not None:
        return Path(arguments.output_dir)
    if recipe.output_dir is not None:
        from alora_trainer.settings import resolve_path

        return resolve_path(recipe.output_dir, recipe.base)
    return Path("runs") / recipe.name


def _show(results: dict[str, Any], folder: Path) -> None:
    from alora_trainer.evaluation.table import format_table

    print(format_table(results["methods"]))
    print(f"results: {folder / 'results.json'}")


if __name__ == "__main__":
    sys.exit(main())
