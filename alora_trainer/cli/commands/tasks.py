"""`alora tasks`: where lm-eval finds the tasks of this package."""

from __future__ import annotations

import argparse

from alora_trainer.cli.answer import Answer
from alora_trainer.cli.commands.common import Subcommands, add_command


def add(commands: Subcommands) -> None:
    text = "Print the folder of this package's lm-eval tasks, for `lm_eval --include_path $(alora tasks)`."
    add_command(commands, "tasks", text, execute)


def execute(arguments: argparse.Namespace, overrides: dict[str, str]) -> Answer:
    from alora_trainer.evaluation.task_documents import PACKAGE

    names = sorted(path.stem for path in PACKAGE.rglob("*.yaml"))
    return Answer(str(PACKAGE), {"folder": str(PACKAGE), "tasks": names})
