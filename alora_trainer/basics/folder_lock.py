"""One command at a time in a folder: a lock that ends with its process, and says who holds it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from alora_trainer.basics.disclosure import redacted
from alora_trainer.basics.disk_errors import disk_errors
from alora_trainer.basics.files import remove_leftovers
from alora_trainer.basics.processes import by_main
from alora_trainer.errors import ALoRAError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"
# What a file system that has no locks says: there the file alone stands for one, and outlives a process that is killed.
_WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


def check_folder(folder: Path) -> None:
    """Raise ALoRAError for a working folder that is a file, or that the system does not look at (a name too long)."""
    with disk_errors():
        if folder.exists() and not folder.is_dir():
            raise ALoRAError(f"{folder} is a file: name a folder with --output_dir")


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Keep all other commands out of a folder while the block runs, and remove what killed ones left half-written in it.

    The lock is the kernel's on ``folder/.lock``, so that it ends with the process, however that ends; what the file says (host,
    process, start, command) is for people. A folder that was made for it, and is empty at the end, is removed. Of several
    processes that were launched together the main one holds it for all.

    Args:
        folder: made if need be.

    Raises:
        ALoRAError: another process holds it (the message says which); on all processes.
        OSError: the folder cannot be made, or nothing can be written in it.
    """
    with contextlib.ExitStack() as held:
        by_main(lambda: held.enter_context(_held(folder)))
        yield


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    made = _make(folder)
    path = folder / LOCK_FILE
    try:
        handle = _take(path)
        try:
            os.ftruncate(handle, 0)
            os.write(handle, (json.dumps(_holder(), ensure_ascii=False) + "\n").encode())
            remove_leftovers(folder)
            yield
        finally:
            with contextlib.suppress(FileNotFoundError):  # somebody removed the whole folder
                path.unlink()  # before the lock ends, so that nobody takes one that is going to vanish
            os.close(handle)
    finally:
        for one in made:
            with contextlib.suppress(OSError):  # there is something in it now, as it should be
                one.rmdir()


def _make(folder: Path) -> list[Path]:
    """Make a folder; what had to be made, the innermost first."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _take(path: Path) -> int:
    """A handle of the lock file, locked.

    Raises:
        ALoRAError: another process has it.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            hindrance = _lock(handle)
            if hindrance is not None:
                raise ALoRAError(_refusal(path, hindrance))
            # Who held it until now has removed the file before letting go: a lock on that is nobody's hindrance.
            if path.exists() and os.fstat(handle).st_ino == path.stat().st_ino:
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _lock(handle: int) -> str | None:
    """Lock the file; what to do about it, if another process has done so."""
    remedy = "wait for its end, or choose another --output_dir"
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return None
    except BlockingIOError:
        return remedy
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
    return None if os.fstat(handle).st_size == 0 else f"{remedy}; if it was killed, remove {{path}}"


def _holder() -> dict[str, Any]:
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "process": os.getpid(), "started": started, "command": redacted(command)}


def _refusal(path: Path, remedy: str) -> str:
    where = f"another command works in {path.parent}"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        who = "process {process} on {host}, since {started}: {command}".format(**found)
    except (OSError, ValueError, KeyError, TypeError):  # it is only just writing
        who = "it has not said yet which"
    return f"{where} ({who}): {remedy.format(path=path)}"
