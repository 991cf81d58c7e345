"""Settings of a recipe on the command line, over what the recipe says."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from alora_trainer.errors import ALoRAError

_ASSIGNED = re.compile(r"[a-z_][\w.]*=", re.IGNORECASE)  # as Hydra's users write an override


def parse_overrides(arguments: Sequence[str], options: Sequence[str] = ()) -> dict[str, str]:
    """Overrides by dotted name, from ``--section.key value``, ``--section.key=value`` and ``section.key=value``.

    Args:
        arguments: what the parser did not know.
        options: the command's own options, to name the one that was meant.

    Raises:
        ALoRAError: an argument is no override, or has no value.
    """
    overrides: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        key, equals, value = argument.removeprefix("--").partition("=")
        if not (argument.startswith("--") or _ASSIGNED.match(argument)) or not key:
            raise ALoRAError(f"unexpected argument {argument}: overrides are written --section.key VALUE")
        near = difflib.get_close_matches(key, options, n=1, cutoff=0.75)
        if near and not _is_setting(key):
            raise ALoRAError(f"unknown option --{key}: did you mean --{near[0]}?")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ALoRAError(f"--{key} has no value: write --{key} VALUE")
            value = rest.pop(0)
        overrides[key] = value
    return overrides


def _is_setting(key: str) -> bool:
    """Whether a recipe has a section or setting of this name, such as ``methods`` beside the option ``--method``."""
    from alora_trainer.experiment.recipe.schema.known import schema

    return key.partition(".")[0] in schema()["properties"]


def parted(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Names of files and overrides (``section.key=value``) apart, where a command takes any number of files."""
    given = [one for one in arguments if _ASSIGNED.match(one) and _is_setting(one.partition("=")[0])]
    overrides = [one for one in given if not Path(one).exists()]
    return [one for one in arguments if one not in overrides], parse_overrides(overrides)
