"""Keys of a section that somebody wrote: those that are not known are refused."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Any

from alora_trainer.errors import ALoRAError


def check_keys(given: Collection[Any], known: Collection[str], section: str = "") -> None:
    """Refuse a key that is not known, naming the nearest one that is.

    Raises:
        ALoRAError: with the key's full name, such as ``tune.learnin_rate``.
    """
    prefix = f"{section}." if section else ""
    for key in given:
        if key in known:
            continue
        near = difflib.get_close_matches(str(key), list(known), n=1, cutoff=0.6)
        if near:
            advice = f"did you mean {prefix}{near[0]}?"
        elif len(known) <= 16:
            advice = f"known are {', '.join(f'{prefix}{name}' for name in known)}"
        else:
            advice = f"{section} takes none of that name"
        raise ALoRAError(f"unknown key {prefix}{key}: {advice}")
