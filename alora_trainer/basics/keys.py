"""Keys of a section and paths that somebody wrote: those that are not there are refused, and the nearest is named."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from pathlib import Path
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
        near = nearest(key, known)
        if near:
            advice = f"did you mean {prefix}{near}?"
        elif len(known) <= 24:
            advice = f"known are {', '.join(f'{prefix}{name}' for name in known)}"
        else:
            advice = f"{section} takes none of that name"
        raise ALoRAError(f"unknown key {prefix}{key}: {advice}")


def nearest(word: object, known: Collection[str], cutoff: float = 0.6) -> str | None:
    """The known word that was most likely meant; None where none is near.

    Args:
        word: what somebody wrote.
        known: to choose from.
        cutoff: the least likeness, between 0 and 1 (see `difflib`).
    """
    near = difflib.get_close_matches(str(word)[:80], list(known), n=1, cutoff=cutoff)
    return near[0] if near else None


def meant_path(path: Path) -> str:
    """``did you mean NAME? `` for a path that is not there and has a near one beside it, to stand before advice."""
    if path.exists() or not path.parent.is_dir():
        return ""
    near = nearest(path.name, sorted(one.name for one in path.parent.iterdir()), 0.75)
    return f"did you mean {path.parent / near}? " if near else ""


def absent(name: str, base: Path = Path()) -> str:
    """``; there is no file or folder NAME here either``, with a near one's name: for what the Hub has not, and could be a path.

    Args:
        name: as somebody wrote it.
        base: the folder that a path starts from.
    """
    path = base / name
    if path.exists():
        return ""
    meant = meant_path(path)
    if not meant and not path.parent.is_dir():
        first = base / Path(name).parts[0]
        meant = meant_path(first) and meant_path(first).replace("? ", f"/{Path(name).name}? ")
    return f"; there is no file or folder {name} here either{f' ({meant.strip()})' if meant else ''}"
