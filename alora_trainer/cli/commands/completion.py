"""`alora completion`: what a shell needs to complete commands and their options."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from alora_trainer.cli.answer import Answer
from alora_trainer.cli.commands.common import Subcommands, add_command

_BASH = """\
_alora() {
    local word="${COMP_WORDS[COMP_CWORD]}" options=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "@COMMANDS@" -- "$word"))
        return
    fi
    case "${COMP_WORDS[1]}" in
@CASES@
    esac
    if [[ "$word" == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$word"))
    fi
}
complete -o default -F _alora alora
"""
_SHELLS = ("bash", "zsh")


def add(commands: Subcommands) -> None:
    text = 'Print a script that completes commands and options in a shell: eval "$(alora completion bash)".'
    completion = add_command(commands, "completion", text, execute, json=False)
    completion.add_argument("shell", choices=_SHELLS, help="which shell")
    completion.set_defaults(commands=commands)


def execute(arguments: argparse.Namespace, overrides: dict[str, str]) -> Answer:
    return Answer(script(arguments.commands, arguments.shell).rstrip("\n"), None)


def script(commands: Subcommands, shell: str) -> str:
    """The script for a shell.

    Args:
        commands: all parsers of the command, by name.
        shell: "bash" or "zsh", which understands bash's completions once it is told to.
    """
    cases = "\n".join(
        f'        {name}) options="{" ".join(_options(parser))}" ;;' for name, parser in commands.choices.items()
    )
    made = _BASH.replace("@COMMANDS@", " ".join(commands.choices)).replace("@CASES@", cases)
    return made if shell == "bash" else f"autoload -U +X bashcompinit && bashcompinit\n{made}"


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:  # argparse has no other way to its options
        yield from (option for option in action.option_strings if option.startswith("--"))
