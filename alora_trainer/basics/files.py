"""Files that appear whole or not at all, and JSON without words that it does not have."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alora_trainer.basics.disclosure import disclosed
from alora_trainer.errors import ALoRAError

# What `replacing` and `remove_folder` call their stand-ins: nobody else's files are called so.
_ENDING = ".partial"
_LEFTOVER = re.compile(r"\..+-[a-z0-9_]{8}\.partial")


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) whole or not at all, making its folder if need be."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, making its folder if need be."""
    with replacing(path) as partial:
        partial.write_bytes(content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file's stand-in, beside it, to be written in the block: put in its place at the end, thrown away after an error.

    The folder is made if need be. What was at `path` stays until the new file is whole and the disk has it.

    Args:
        path: the file to write or to replace.

    Yields:
        the path to write to; its name ends on ``.partial``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", suffix=_ENDING, dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.chmod(0o644)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def remove_folder(folder: Path) -> None:
    """Remove a folder with all that is in it, at once: killed on the way, there is the whole of it or nothing."""
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=_ENDING, dir=folder.parent))
    os.rename(folder, aside / folder.name)
    shutil.rmtree(aside)


def is_leftover(path: Path) -> bool:
    """Whether a file or folder is what a process of ours that was killed while it wrote left behind."""
    return _LEFTOVER.fullmatch(path.name) is not None


def remove_leftovers(folder: Path) -> None:
    """Remove all leftovers in a folder and below it. Nobody else may be writing there (see `folder_lock`)."""
    for path in sorted(folder.rglob(f".*{_ENDING}")):
        if not is_leftover(path) or any(is_leftover(parent) for parent in path.relative_to(folder).parents):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """Write `value` as JSON, whole or not at all.

    What is not a finite number, as JSON has no word for it, is null, and what comes from the environment is as it was written.
    """
    write_text(path, json_text(value, indent=indent, ascii_alone=False) + "\n")


def json_text(value: Any, *, indent: int | None = 2, ascii_alone: bool = True) -> str:
    """`value` as JSON; see `write_json`.

    Args:
        value: plain data.
        indent: of nested parts; None for one line.
        ascii_alone: every other character as an escape, as a terminal can have it whoever wrote it.
    """
    return json.dumps(_finite(disclosed(value)), indent=indent, ensure_ascii=ascii_alone, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> Any:
    """What `write_json` wrote, or None if there is no such file.

    Raises:
        ALoRAError: the file is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ALoRAError(f"{path} is damaged ({error}): remove it, and run again") from error
