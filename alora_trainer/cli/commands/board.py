"""`alora board`: methods tuned as hard as each other, on curves; and the page of one or several boards."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from alora_trainer.basics.output import tell_loading
from alora_trainer.basics.tables import terminal_width
from alora_trainer.cli.answer import Answer
from alora_trainer.cli.commands.common import Subcommands, add_command, add_workers, workers_of
from alora_trainer.errors import ALoRAError

RENDER = "render"


def add(commands: Subcommands) -> None:
    text = "Run a board file (methods tuned with the same number of trials, finals over seeds), or render boards as one page."
    board = add_command(commands, "board", text, execute)
    board.usage = "alora board FILE [options] | alora board render JSON [JSON ...] [--output_dir DIR] [--picture FILE]"
    board.add_argument(
        "sources", nargs="+", metavar="FILE", help="a board file, such as those in recipes/boards/; or: render JSON ..."
    )
    board.add_argument(
        "--output_dir",
        metavar="DIR",
        help="where everything is written; the same command with the same folder goes on where it was stopped "
        "(default: runs/NAME-board; of render: the working directory)",
    )
    add_workers(board)
    board.add_argument(
        "--only", metavar="ROWS", help="run these rows alone, such as kfac,replay; the reference is always run"
    )
    board.add_argument(
        "--finished",
        metavar="JSON",
        help="an earlier board.json of this board, or of one in the same setting: its finished rows are taken over and not "
        "trained again; the reference's finals are, and must come out as they are there",
    )
    board.add_argument(
        "--overwrite", action="store_true", help="make anew what other settings made in the output folder"
    )
    board.add_argument("--picture", metavar="FILE.svg", help="of render: write the curves as a picture, too")
    board.add_argument("--dry_run", action="store_true", help="check everything and say what it takes; train nothing")
    board.add_argument(
        "--device",
        help="of the dry run's times: H100, A800, A100, 4090, or probe to measure this machine (default: none)",
    )


def execute(arguments: argparse.Namespace, overrides: dict[str, str]) -> Answer:
    tell_loading()
    if arguments.sources[0] == RENDER:
        return _render(arguments)
    if len(arguments.sources) > 1:
        raise ALoRAError(
            f"one board file at a time, not {len(arguments.sources)}; pages of several: alora board render JSON ..."
        )
    if arguments.picture is not None:
        raise ALoRAError("--picture is of render: alora board render JSON --picture FILE.svg")
    if arguments.device is not None and not arguments.dry_run:
        raise ALoRAError("--device is of --dry_run: a board runs on the machine that it is started on")
    from alora_trainer.experiment.board.board_file import read_board
    from alora_trainer.experiment.board.dry_run import estimate_text, estimated
    from alora_trainer.experiment.board.page import PAGE_FILE, render_boards
    from alora_trainer.experiment.board.taken_over import FinishedRows
    from alora_trainer.experiment.board.whole_board import rows_to_train, run_board
    from alora_trainer.experiment.recipe.plan.devices import get_device
    from alora_trainer.experiment.run.run import check_single_process

    check_single_process()
    board = read_board(arguments.sources[0])
    only = None if arguments.only is None else arguments.only.split(",")
    if arguments.dry_run:
        device = None if arguments.device is None else get_device(arguments.device)
        finished = None if arguments.finished is None else FinishedRows(board, Path(arguments.finished))
        rows = rows_to_train(board, only, finished)
        found = estimated(board, rows, device, () if finished is None else finished.names)
        text = estimate_text(board, found, device, arguments.workers)
        return Answer(text, {"board": board.name, "places": [asdict(one) for one in found]})
    folder = Path(arguments.output_dir) if arguments.output_dir is not None else Path("runs") / f"{board.name}-board"
    written = run_board(
        board,
        output_dir=folder,
        workers=workers_of(arguments),
        overwrite=arguments.overwrite,
        only=only,
        finished=arguments.finished,
    )
    page = render_boards([written], folder / PAGE_FILE)
    return Answer(
        f"{_tables([written])}\nresults: {written}\npage: {page}", {"results": str(written), "page": str(page)}
    )


def _render(arguments: argparse.Namespace) -> Answer:
    for name in ("only", "finished", "device", "overwrite", "dry_run"):
        if getattr(arguments, name):
            raise ALoRAError(f"--{name} is of a board that is run, not of render")
    from alora_trainer.experiment.board.page import PAGE_FILE, render_boards, render_picture

    folder = Path(arguments.output_dir or ".")
    page = render_boards(arguments.sources[1:], folder / PAGE_FILE)
    text, data = f"{_tables(arguments.sources[1:])}\npage: {page}", {"page": str(page)}
    if arguments.picture is not None:
        picture = render_picture(arguments.sources[1:], arguments.picture)
        text, data = f"{text}\npicture: {picture}", data | {"picture": str(picture)}
    return Answer(text, data)


def _tables(sources: Sequence[str | Path]) -> str:
    from alora_trainer.experiment.board.board_json import read_board_json
    from alora_trainer.experiment.board.text_table import board_tables

    return "\n\n".join(board_tables(read_board_json(Path(source)), terminal_width()) for source in sources)
