"""The `alora` command; each subcommand is a module of `commands`."""

from __future__ import annotations

from alora_trainer.cli.command_line import main

__all__ = ["main"]
