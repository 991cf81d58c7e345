"""`alora fit`: one's own data learned, with a promise on general ability; no recipe needed."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alora_trainer.basics.output import say, tell_loading
from alora_trainer.basics.tables import terminal_width
from alora_trainer.cli.answer import Answer
from alora_trainer.cli.commands.common import Execute, Subcommands, add_recipe_command
from alora_trainer.cli.overrides import parted

if TYPE_CHECKING:
    from alora_trainer.experiment.fit.request import FitRequest

_FOLDER = "fit-{model}"  # where a fit works that is not told where
_DEMO_DATA = "demo-data"
_LISTS = ("test", "general", "unseen", "tried")
_SETTINGS = ("importance", "after", "method", "prompt", "completion", "epochs", "max_steps", "general_tokens", "seed")


def add(commands: Subcommands) -> None:
    text = "Learn your data with an adapter that keeps a promise on general ability; exit 0 kept, 3 not kept, 2 wrong input."
    fit = add_fit_command(commands, "fit", text, execute)
    fit.add_argument(
        "--dry-run",
        "--dry_run",
        action="store_true",
        help="say what was found, what it will take, and the recipe; write nothing",
    )
    fit.add_argument("--merged", action="store_true", help="write the base model with the adapter merged into it, too")


def add_fit_command(commands: Subcommands, name: str, text: str, execute: Execute) -> argparse.ArgumentParser:
    """A parser with what `alora fit` and `alora init` have in common."""
    command = add_recipe_command(
        commands,
        name,
        text,
        execute,
        recipe=False,
        folder=f"{_FOLDER.format(model='NAME')}, NAME being the last part of the model's",
        example="--tune.learning_rate 1e-4 --lora.r 16",
    )
    _add_arguments(command)
    return command


def _add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "model", metavar="MODEL", help="a folder or Hub id; `demo` is the embedded model, with its own data"
    )
    command.add_argument(
        "data", metavar="DATA", nargs="*", help="files, folders or Hub data sets (organisation/name[:split]) to learn"
    )
    command.add_argument(
        "--max-general-rise",
        "--max_general_rise",
        metavar="SHARE",
        default="1%",
        help="how much the mean negative log-likelihood a token may rise on general text, of the base model's (default: 1%%)",
    )
    command.add_argument(
        "--test", nargs="+", metavar="DATA", help="what was learned is measured on it (default: a part held out)"
    )
    command.add_argument(
        "--general", nargs="+", metavar="TEXT", help="general text to keep (default: sampled from the model itself)"
    )
    command.add_argument(
        "--unseen",
        nargs="+",
        metavar="TEXT",
        help="text of other kinds, whose rise is measured and told apart, not promised",
    )
    command.add_argument(
        "--importance",
        metavar="MAP",
        help="a map (folder or Hub id) to hold the training by; `search` looks for one on the Hub",
    )
    command.add_argument(
        "--after",
        type=Path,
        metavar="DIR",
        help="an earlier fit, whose items are learned together with DATA, held by its map; in the --output_dir it "
        "is set aside as earlier/1",
    )
    command.add_argument(
        "--method",
        help="kfac_natural, kfac, ekfac, covariance or another that is held to the base (default: kfac_natural, which also "
        "starts where the domain is learned and forgetting is cheapest)",
    )
    command.add_argument(
        "--prompt", metavar="TEMPLATE", help="of the columns, such as '{question}', where none is recognised"
    )
    command.add_argument("--completion", metavar="TEMPLATE", help="of the columns, such as ' {answer}'")
    command.add_argument("--epochs", type=float, metavar="N", help="over the items (default: 3)")
    command.add_argument("--max-steps", "--max_steps", type=int, metavar="N", help="optimizer steps, instead of epochs")
    command.add_argument(
        "--general-tokens",
        "--general_tokens",
        type=int,
        metavar="N",
        help="of general text that are used (default: 100000)",
    )
    _add_guards_and_trials(command)
    command.add_argument("--seed", type=int, metavar="N", help="of everything (default: 0)")


def _add_guards_and_trials(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--keep",
        action="append",
        metavar="TASK=-1pt",
        help="a task of lm-eval's, or a file of prompts with reference answers, whose score may fall by so much at most; "
        "may be given several times",
    )
    command.add_argument(
        "--probing",
        metavar="SHARE",
        help="of the training's steps, for short trainings that find the learning rate, such as 25%% (default: none)",
    )
    command.add_argument(
        "--try",
        dest="tried",
        nargs="+",
        metavar="METHOD",
        help="further methods for these short trainings, such as kfac_mlp (the MLP's layers alone) or ekfac",
    )


def find_named(arguments: argparse.Namespace) -> None:
    """Look for the model and all data that are named, before anything heavy is loaded; they are opened later.

    Raises:
        ALoRAError: one of them is not there, or is of no known format.
    """
    from alora_trainer.data.detection.finding import find_data
    from alora_trainer.experiment.recipe.model_place import model_place

    if not _is_demo(arguments.model):
        model_place(arguments.model, Path())
    find_data(parted(arguments.data)[0])
    for name in ("test", "general", "unseen"):
        find_data(getattr(arguments, name) or ())


def _is_demo(model: str) -> bool:
    return model == "demo" and not Path("demo").exists()


def request_of(
    arguments: argparse.Namespace, overrides: dict[str, str], *, demo_data: Path | None = None
) -> FitRequest:
    """What the arguments ask for.

    Args:
        demo_data: where the data of `alora fit demo` are written; None for the result's folder.

    Raises:
        ALoRAError: a value cannot be used.
    """
    from alora_trainer.experiment.fit.request import FitRequest
    from alora_trainer.experiment.report.gate import parse_kept, parse_rise, parse_share

    folder = Path(arguments.output_dir or _FOLDER.format(model=Path(arguments.model).name))
    given: dict[str, Any] = {
        name: getattr(arguments, name) for name in _SETTINGS if getattr(arguments, name) is not None
    }
    given |= {name: tuple(getattr(arguments, name)) for name in _LISTS if getattr(arguments, name)}
    files, assigned = parted(arguments.data)
    model, data = arguments.model, tuple(files)
    if _is_demo(model):
        model, data, given = _demo(demo_data or folder / _DEMO_DATA, data, given)
    return FitRequest(
        model=model,
        data=data,
        output_dir=folder,
        max_general_rise=parse_rise(arguments.max_general_rise),
        merged=getattr(arguments, "merged", False),
        probing=parse_share(arguments.probing or "0"),
        keep=parse_kept(arguments.keep or ()),
        overrides=overrides | assigned,
        **given,
    )


def _demo(files: Path, data: tuple[str, ...], given: dict[str, Any]) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    """The embedded model, and for what is not said its own data: questions on elements, and text that every Python has."""
    from alora_trainer.experiment import demo

    demo.prepare(files)
    general = tuple(str(files / f"{name}_train.jsonl") for name in ("docstrings", "topics"))
    usual = {
        "general": general,
        "unseen": (str(files / "code_test.jsonl"),),
        "max_steps": 100,
        "general_tokens": 60_000,
    }
    if data:
        return str(demo.MODEL), data, usual | given
    usual |= {"test": (str(files / "elements_test.jsonl"),)}
    return str(demo.MODEL), (str(files / "elements_train.jsonl"),), usual | given


def execute(arguments: argparse.Namespace, overrides: dict[str, str]) -> Answer:
    find_named(arguments)
    tell_loading()
    from transformers.utils.logging import disable_progress_bar

    from alora_trainer.experiment.fit.whole_fit import run_fit
    from alora_trainer.experiment.report.gate import FAILED_STATUS
    from alora_trainer.experiment.report.text_table import format_table

    disable_progress_bar()
    if arguments.dry_run:
        return _dry_run(arguments, overrides)
    result = run_fit(request_of(arguments, overrides), overwrite=arguments.overwrite, told=say)
    report = result.folder / "report.html"
    table = format_table(result.results.methods, terminal_width())
    return Answer(
        f"{table}\n{result.sentence}\nadapter: {result.adapter}\nreport: {report}",
        {
            "kept": result.kept,
            "sentence": result.sentence,
            "promise": result.promise,
            "adapter": str(result.adapter),
            "report": str(report),
            "results": result.results.to_json(),
        },
        0 if result.kept else FAILED_STATUS,
    )


def _dry_run(arguments: argparse.Namespace, overrides: dict[str, str]) -> Answer:
    """What was found, what it will take, and the recipe; the demo's data are made in a folder that goes away."""
    from alora_trainer.experiment.fit.prepared import plan_text, planned

    with tempfile.TemporaryDirectory(prefix="alora-fit-") as away:
        request = request_of(arguments, overrides, demo_data=Path(away) / _DEMO_DATA)
        prepared = planned(request)
        # Named as the fit itself would name them: where they were made is of no use to anybody.
        found = prepared.found.text().replace(away, str(request.output_dir))
        return Answer(f"{found}\n\n{plan_text(prepared)}\n\n{prepared.text}", {"recipe": prepared.written})
