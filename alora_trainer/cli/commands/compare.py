"""`alora compare`: two evaluated methods, item by item and text by text."""

from __future__ import annotations

import argparse
from pathlib import Path

from alora_trainer.cli.answer import Answer
from alora_trainer.cli.commands.common import Subcommands, add_command


def add(commands: Subcommands) -> None:
    text = "Compare two evaluated methods: items won and lost, general subsets that lost, texts whose loss rose most."
    compare = add_command(commands, "compare", text, execute)
    compare.add_argument(
        "before", metavar="A", help="a method's folder in a run, such as runs/x/lora, or a run with --method"
    )
    compare.add_argument("after", metavar="B", help="another one")
    compare.add_argument("--method", help="the method, where A and B are run folders (default: alora)")
    compare.add_argument(
        "--examples", type=int, default=5, metavar="N", help="how many items and texts to show (default: 5)"
    )
    compare.add_argument("--output", metavar="FILE", help="write all of it as JSON, too")


def execute(arguments: argparse.Namespace, overrides: dict[str, str]) -> Answer:
    from alora_trainer.basics.files import write_json
    from alora_trainer.experiment.report.item_comparison import compare_folders, comparison_text

    found = compare_folders(
        Path(arguments.before), Path(arguments.after), method=arguments.method, examples=arguments.examples
    )
    text = comparison_text(found)
    if arguments.output is not None:
        write_json(Path(arguments.output), found)
        text += f"\nas JSON: {arguments.output}"
    return Answer(text, found)
