"""`alora report`: pages, pictures and numbers of finished runs."""

from __future__ import annotations

import argparse

from alora_trainer.basics.output import tell_loading
from alora_trainer.cli.answer import Answer
from alora_trainer.cli.commands.common import Subcommands, add_command


def add(commands: Subcommands) -> None:
    text = "Make a report (HTML, Markdown, pictures, JSON) of one or several runs, of a sweep, or of an earlier report's JSON."
    report = add_command(commands, "report", text, execute)
    report.add_argument(
        "sources",
        nargs="+",
        metavar="RUN_DIR",
        help="run folders, sweep folders, results.json files, or report.json of a report",
    )
    report.add_argument(
        "--output_dir", metavar="DIR", default="report", help="where the report is written (default: report)"
    )


def execute(arguments: argparse.Namespace, overrides: dict[str, str]) -> Answer:
    tell_loading()
    from alora_trainer.experiment.report.report_files import write_report

    page = write_report(arguments.sources, arguments.output_dir)
    return Answer(f"report: {page}", {"report": str(page), "numbers": str(page.with_suffix(".json"))})
