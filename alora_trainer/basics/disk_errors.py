"""What a disk refuses (full, read-only, no permission, a name too long), in one line, whichever library met it."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alora_trainer.errors import ALoRAError

# How libraries that are not written in Python say which of the system's errors they met.
_NUMBERED = re.compile(r"\(os error (\d+)\)(?: at path \"([^\"]+)\")?")
_WORDED = re.compile(r"failed with (No space left on device|Disk quota exceeded|Read-only file system|File too large)")
_WORDS = {os.strerror(number): number for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)}
# The writer of torch.save, which does not say why what it wrote is not there.
_TORCH = re.compile(r"unexpected pos \d+ vs \d+|PytorchStreamWriter failed")

_FULL = "make room there, or choose another --output_dir; the same command then goes on"
_REMEDIES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.EROFS: "choose another --output_dir",
    errno.EACCES: "get the permission, or choose another path",
    errno.EPERM: "get the permission, or choose another path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "a part of this path is a file: choose another one",
    errno.EEXIST: "a part of this path is a file: choose another one",
    errno.EISDIR: "this is a folder: name a file",
    errno.ENOENT: "was it removed meanwhile?",
    errno.EMFILE: "raise the limit (ulimit -n)",
    errno.EIO: "look after the disk",
}


@contextmanager
def disk_errors(folder: Path | None = None) -> Iterator[None]:
    """Tell what the disk refuses in the block in one line, as an ALoRAError; every other error passes.

    Args:
        folder: where the block writes, for errors that do not name a path.

    Raises:
        ALoRAError: the disk refused something.
    """
    try:
        yield
    except ALoRAError:
        raise
    except Exception as error:
        line = disk_error(error, folder)
        if line is None:
            raise
        raise ALoRAError(line) from error


def disk_error(error: BaseException, folder: Path | None = None) -> str | None:
    """What the disk refused, in one line; None if `error` (or what it was raised from) is of another kind.

    Args:
        error: any exception.
        folder: where its block was writing.
    """
    if isinstance(error, OSError):
        found = _of_the_system(error, folder)
    elif _TORCH.search(str(error)):
        return f"a file below {folder or '.'} could not be written whole ({_room(folder)}): {_FULL}"
    else:
        found = _of_a_library(error, folder)
    if found is None and error.__cause__ is not None:
        return disk_error(error.__cause__, folder)
    return found


def _of_the_system(error: OSError, folder: Path | None) -> str | None:
    if error.errno is None or isinstance(error, (ConnectionError, TimeoutError)):
        return None
    if error.filename is None and (error.errno not in _REMEDIES or error.errno == errno.ENOENT):
        return None
    named = error.filename2 if error.filename2 is not None else error.filename
    return _line(error.errno, named if isinstance(named, (str, os.PathLike)) else folder)


def _of_a_library(error: BaseException, folder: Path | None) -> str | None:
    numbered, worded = _NUMBERED.search(str(error)), _WORDED.search(str(error))
    if numbered is not None and int(numbered[1]) in _REMEDIES:
        return _line(int(numbered[1]), numbered[2] or folder)
    return _line(_WORDS[worded[1]], folder) if worded is not None else None


def _line(number: int, path: str | os.PathLike[str] | None) -> str:
    remedy = _REMEDIES.get(number)
    return f"{os.fspath(path or '.')}: {os.strerror(number)}" + (f": {remedy}" if remedy else "")


def _room(folder: Path | None) -> str:
    """How much room the disk of a folder has, as far as that can be known."""
    try:
        return f"{shutil.disk_usage(folder or '.').free >> 20} MiB are free there, beside any quota"
    except OSError:
        return "how much is free there cannot be told"
