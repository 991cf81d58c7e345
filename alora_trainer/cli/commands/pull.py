"""`alora pull`: an importance map from the Hub, into the cache or a folder of its own."""

from __future__ import annotations

import argparse
from pathlib import Path

from alora_trainer.cli.answer import Answer
from alora_trainer.cli.commands.common import Subcommands, add_command


def add(commands: Subcommands) -> None:
    text = "Fetch an importance map from the Hub, and check every value of it."
    pull = add_command(commands, "pull", text, execute)
    pull.add_argument("repo", metavar="REPO", help="organisation/name, or organisation/name@revision")
    pull.add_argument("--revision", help="a branch, a tag or a commit (default: main)")
    pull.add_argument(
        "--storage", metavar="FORMAT", help="this storage format alone; converted if the repository has it not"
    )
    pull.add_argument(
        "--layers", metavar="LAYERS", help="some transformer blocks or weights alone, as in 0-11,*.v_proj"
    )
    pull.add_argument("--output_dir", metavar="DIR", help="a folder for it (default: it stays in the Hub's cache)")


def execute(arguments: argparse.Namespace, overrides: dict[str, str]) -> Answer:
    from alora_trainer.artefact.config_file import read_config
    from alora_trainer.artefact.hub.download import pull, read_from
    from alora_trainer.artefact.reading import load_map, verify_map
    from alora_trainer.importance.importance_values import ImportanceValues
    from alora_trainer.importance.origin import Origin
    from alora_trainer.importance.selection import parse_layers

    wanted = {
        "revision": arguments.revision,
        "storage": arguments.storage,
        "layers": parse_layers(arguments.layers),
    }
    if arguments.output_dir is not None:
        pull(arguments.repo, Path(arguments.output_dir), **wanted)
        return _answer(arguments.output_dir)

    def check(folder: Path, origin: Origin | None) -> Path:
        if wanted["layers"] is None:
            verify_map(folder, [read_config(folder).format_for(arguments.storage)])
        else:
            load_map(folder, ImportanceValues, storage=arguments.storage, layers=wanted["layers"])
        return folder

    return _answer(read_from(arguments.repo, check, **wanted, extras=True))


def _answer(folder: str | Path) -> Answer:
    return Answer(f"importance map: {folder}", {"map": str(folder)})
