"""`alora eval`: score what was trained before, an adapter, a merged model, or the base model; with a gate for pipelines."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alora_trainer.cli.answer import Answer
from alora_trainer.cli.commands.common import Subcommands, add_recipe_command, load, output_dir, results_answer

if TYPE_CHECKING:
    from alora_trainer.experiment.recipe.recipe import Recipe


def add(commands: Subcommands) -> None:
    text = "Evaluate a method trained before, an adapter, a merged model, or (with none of these) the base model."
    evaluate = add_recipe_command(commands, "eval", text, execute)
    which = evaluate.add_mutually_exclusive_group()
    which.add_argument("--method", help="one that `alora tune` or `alora run` trained in the output folder")
    which.add_argument("--adapter", metavar="FOLDER_OR_HUB_ID", help="any PEFT adapter of the recipe's base model")
    which.add_argument(
        "--model", metavar="FOLDER_OR_HUB_ID", help="another model, such as the base with an adapter merged into it"
    )
    evaluate.add_argument(
        "--limit", metavar="N", help="score only so many documents of each subset and items of the task"
    )
    evaluate.add_argument("--batch_size", metavar="N", help="sequences scored at once; 'auto' finds the most that fit")
    gate = evaluate.add_argument_group("gate", "exit with status 3 if the model does not hold these")
    gate.add_argument(
        "--max-general-rise",
        "--max_general_rise",
        metavar="SHARE",
        help="by how much general loss (nats a token, as in alora.budget) may lie over the base model's, such as 1%%",
    )
    gate.add_argument(
        "--min-accuracy", "--min_accuracy", metavar="SHARE", help="the least accuracy on the task, such as 0.9"
    )
    gate.add_argument(
        "--max-answer-loss",
        "--max_answer_loss",
        metavar="NATS",
        type=float,
        help="the most loss a token of free answers, such as 1.2",
    )
    gate.add_argument(
        "--keep",
        action="append",
        metavar="TASK=-1pt",
        help="a task of lm-eval's, or a file of prompts with reference answers, whose score may fall by so much at most under "
        "the base model's; may be given several times",
    )
    evaluate.epilog = (
        f"{evaluate.epilog} In several processes: torchrun --nproc_per_node N -m alora_trainer.cli eval ...; the numbers "
        "are the same as in one."
    )


def execute(arguments: argparse.Namespace, overrides: dict[str, str]) -> Answer:
    from alora_trainer.experiment.methods import get_method
    from alora_trainer.experiment.report.gate import FAILED_STATUS, parse_kept, parse_rise, parse_share, run_gate

    method = get_method(arguments.method) if arguments.method is not None else None
    limits: dict[str, Any] = {
        name: parse(getattr(arguments, name))
        for name, parse in (("max_general_rise", parse_rise), ("min_accuracy", parse_share))
        if getattr(arguments, name) is not None
    }
    if arguments.max_answer_loss is not None:
        limits["max_answer_loss"] = arguments.max_answer_loss
    keep = parse_kept(arguments.keep or ())
    for name in ("limit", "batch_size"):
        if getattr(arguments, name) is not None:
            overrides[f"evaluation.{name}"] = getattr(arguments, name)
    from alora_trainer.basics.processes import joined
    from alora_trainer.evaluation.kept_prompts import kept_task

    with joined():
        recipe = load(arguments, overrides, several_processes=True)
        from alora_trainer.experiment.run.whole_recipe import evaluate_recipe

        folder = output_dir(arguments, recipe)
        if keep:
            recipe = load(arguments, _with_kept(recipe, overrides, keep, folder), several_processes=True)
            limits["keep"] = {kept_task(one): least for one, least in keep.items()}
        results = evaluate_recipe(
            recipe,
            output_dir=folder,
            overwrite=arguments.overwrite,
            method=method,
            adapter=arguments.adapter,
            model=arguments.model,
            with_base="max_general_rise" in limits or bool(keep),
        )
        name = (
            method.name
            if method is not None
            else "adapter"
            if arguments.adapter
            else "model"
            if arguments.model
            else "base"
        )
        checks = run_gate(results.methods, name, **limits)
    shown = results_answer(results, folder)
    return Answer(
        "\n".join([shown.text, *map(str, checks)]),
        shown.data | {"gate": [asdict(check) for check in checks]},
        0 if all(check.passed for check in checks) else FAILED_STATUS,
    )


def _with_kept(recipe: Recipe, overrides: dict[str, str], keep: Mapping[str, float], folder: Path) -> dict[str, str]:
    """The overrides with what is to be kept among the tasks; files of prompts become tasks in ``folder/keep``."""
    from alora_trainer.basics.processes import is_main, main_first
    from alora_trainer.errors import ALoRAError
    from alora_trainer.evaluation.kept_prompts import check_kept, is_prompt_file, kept_task, write_kept
    from alora_trainer.experiment.run.models import load_tokenizer

    check_kept(keep)
    tasks = list(dict.fromkeys([*recipe.evaluation.general_tasks, *map(kept_task, keep)]))
    added = {"evaluation.general_tasks": json.dumps(tasks)}
    if any(map(is_prompt_file, keep)):
        if recipe.evaluation.task_folder is not None:
            raise ALoRAError(
                "--keep with a file of prompts has a task folder of its own: leave evaluation.task_folder out"
            )
        with main_first():
            if is_main():
                write_kept(list(keep), folder / "keep", load_tokenizer(recipe))
        added["evaluation.task_folder"] = str((folder / "keep").resolve())
    return overrides | added
