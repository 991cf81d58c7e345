"""`alora push`: publish an importance map, or an adapter that was tuned with one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alora_trainer.basics.keys import meant_path
from alora_trainer.cli.answer import Answer
from alora_trainer.cli.commands.common import Subcommands, add_command
from alora_trainer.errors import ALoRAError

if TYPE_CHECKING:
    from alora_trainer.artefact.cards.evaluation import CardScores


def add(commands: Subcommands) -> None:
    text = "Publish an importance map, or an adapter that was tuned with one, on the Hub."
    push = add_command(commands, "push", text, execute)
    push.add_argument(
        "folder",
        metavar="FOLDER",
        help="a map's folder (RUN/record/map, RUN/curvature_kronecker/map; FIT/run/curvature_kronecker/map) or an adapter's "
        "(RUN/alora/adapter, FIT/adapter)",
    )
    push.add_argument("repo", metavar="REPO", help="organisation/name; made if need be")
    push.add_argument("--private", action="store_true", help="make the repository private, if it is made now")
    push.add_argument("--revision", metavar="BRANCH", help="the branch to commit to (default: main)")
    push.add_argument("--message", help="the commit's first line")
    push.add_argument(
        "--storage",
        metavar="FORMATS",
        help="storage formats to publish a map in, the first one by default, as in float32,log8",
    )
    push.add_argument("--base_model", metavar="HUB_ID", help="the base model's id, where it was loaded from a folder")
    push.add_argument("--license", help="the licence to state, such as apache-2.0; otherwise that of base and data")
    push.add_argument("--results", metavar="FILE", help="results.json with the evaluation to put into the card")
    push.add_argument("--method", help="whose results (default: the name of the adapter's parent folder)")


def execute(arguments: argparse.Namespace, overrides: dict[str, str]) -> Answer:
    from alora_trainer.artefact.hub.upload import push_folder, push_map

    folder = Path(arguments.folder)
    if not folder.is_dir():
        raise ALoRAError(f"there is no folder {folder} to publish; {meant_path(folder)}".rstrip("; "))
    settings: dict[str, Any] = {
        "private": arguments.private or None,
        "revision": arguments.revision,
        "commit_message": arguments.message,
        "base_model": arguments.base_model,
        "license": arguments.license,
        "results": _results(folder, arguments.results, arguments.method),
    }
    if arguments.storage is not None:
        from alora_trainer.artefact.importance_map import ImportanceMap

        formats = [name.strip() for name in arguments.storage.split(",") if name.strip()]
        place = push_map(ImportanceMap.from_pretrained(folder), arguments.repo, storage=formats, **settings)
    else:
        place = push_folder(folder, arguments.repo, **settings)
    return Answer(place, {"commit": place})


def _results(folder: Path, given: str | None, method: str | None) -> CardScores | None:
    """The evaluation that belongs to a folder: the named one, or that of the run that the adapter is from."""
    from alora_trainer.experiment.report.results import RESULTS_FILE, card_scores

    resolved = folder.resolve()
    name = method or resolved.parent.name
    if given is not None:
        return card_scores(Path(given), name)
    beside = resolved.parent.parent / RESULTS_FILE
    if resolved.name != "adapter" or not beside.is_file():
        if method is not None:
            raise ALoRAError("--method says whose results to take, and there are none: name their file with --results")
        return None
    return card_scores(beside, name)
