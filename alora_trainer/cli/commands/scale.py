"""`alora scale`: a finished adapter times a number, on the straight line between the base model and the tuned one."""

from __future__ import annotations

import argparse
from pathlib import Path

from alora_trainer.basics.keys import meant_path
from alora_trainer.cli.answer import Answer
from alora_trainer.cli.commands.common import Subcommands, add_command
from alora_trainer.errors import ALoRAError


def add(commands: Subcommands) -> None:
    text = "Multiply a finished LoRA adapter by a number: less of it forgets less (WiSE-FT). Nothing is trained."
    scale = add_command(commands, "scale", text, execute)
    scale.add_argument("adapter", metavar="ADAPTER", help="an adapter's folder, such as RUN/lora/adapter")
    scale.add_argument(
        "--alpha", type=float, required=True, help="0 is the base model, 1 the adapter itself; 0.3 to 0.9 is usual"
    )
    scale.add_argument(
        "--output_dir", metavar="DIR", help="a new folder for it (default: beside the adapter, as ADAPTER-times-ALPHA)"
    )


def execute(arguments: argparse.Namespace, overrides: dict[str, str]) -> Answer:
    from alora_trainer.artefact.scaled_adapter import scale_adapter

    source = Path(arguments.adapter)
    if not source.is_dir():
        raise ALoRAError(
            f"there is no adapter folder {source}: {meant_path(source)}fetch one from the Hub with hf download REPO"
        )
    named = source.resolve()
    target = arguments.output_dir or named.with_name(f"{named.name}-times-{arguments.alpha:g}")
    made = scale_adapter(source, arguments.alpha, Path(target))
    return Answer(f"adapter: {made}", {"adapter": str(made)})
