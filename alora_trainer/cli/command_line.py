"""The `alora` command. Parses arguments; the commands themselves are in `commands`, and import what is heavy when they run."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn

from alora_trainer.basics.disclosure import redacted
from alora_trainer.basics.disk_errors import disk_errors
from alora_trainer.basics.files import json_text
from alora_trainer.basics.output import configure_output, quiet_output, say
from alora_trainer.basics.printable import printable
from alora_trainer.basics.versions import OWN_VERSION
from alora_trainer.cli.answer import Answer
from alora_trainer.cli.commands import COMMANDS
from alora_trainer.cli.commands.listing import add_listings
from alora_trainer.cli.overrides import parse_overrides
from alora_trainer.errors import ALoRAError


class _Parser(argparse.ArgumentParser):
    """One that names the command or the option's value that was meant, in one line."""

    def error(self, message: str) -> NoReturn:
        """End the process with status 2, after one line on what is wrong."""
        unknown = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if unknown:
            known = re.findall(r"[\w-]+", unknown[2])
            near = difflib.get_close_matches(unknown[1], known, n=1)
            meant = f"did you mean {near[0]}?" if near else f"use one of {', '.join(known)}"
            what = "command" if "COMMAND" in message else "choice"
            message = f"unknown {what} {unknown[1]}: {meant}"
        print(f"{self.prog}: error: {message} (see `{self.prog} --help`)", file=sys.stderr)
        sys.exit(2)


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command; what it does not know are overrides, for `parse_overrides`."""
    parser = _Parser(
        prog="alora",
        description="Tune a language model on a domain while holding what mattered for its general ability.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"alora-trainer {OWN_VERSION}")
    add_listings(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for command in COMMANDS:
        command.add(commands)
    return parser


def _answered(arguments: argparse.Namespace, overrides: dict[str, str]) -> int:
    """Execute the command and print what it answers, with ``--json`` nothing else on standard output; the exit status."""
    as_json = getattr(arguments, "json", False)
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        answer: Answer = arguments.execute(arguments, overrides)
    if is_first():  # several processes have one answer
        say(json_text(answer.data) if as_json else answer.text)
    return answer.status


@contextlib.contextmanager
def _flushed() -> Iterator[None]:
    """What was printed goes out at once: if nobody reads any more, that is met here, and not when the interpreter ends."""
    try:
        yield
    finally:
        sys.stdout.flush()


def is_first() -> bool:
    """Whether this is the first of several processes that torchrun launched, or the only one."""
    # Not by `basics.processes`, which needs PyTorch. A RANK that some machines set for themselves is no launch.
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the process's exit status.

    0: done; 2: the user's mistake, or what the disk refused, told in one line; 3: a gate failed
    (`alora eval --min-accuracy`), or a promise is not kept (`alora fit`);
    130: interrupted. Any other error keeps its traceback.
    """
    parser = make_parser()
    try:
        with _flushed():  # help and listings are printed while the arguments are parsed
            if not (sys.argv[1:] if argv is None else argv):
                parser.print_help()
                return 2
            arguments, rest = parser.parse_known_args(argv)
        configure_output()
        if arguments.quiet:
            quiet_output()
        own = [name for name in vars(arguments) if name not in ("command", "recipe", "execute", "takes_overrides")]
        overrides = parse_overrides(rest, own)
        if overrides and not arguments.takes_overrides:
            raise ALoRAError(f"unknown option --{next(iter(overrides))}: see `alora {arguments.command} --help`")
        with disk_errors():
            return _answered(arguments, overrides)
    except ALoRAError as error:
        print(f"alora: error: {printable(redacted(' '.join(str(error).split())))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if is_first():
            print("\nalora: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of the output went away; without this the interpreter complains once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
