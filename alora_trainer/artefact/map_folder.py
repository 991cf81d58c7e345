"""How a map comes into its folder: at every moment, that of a kill included, the whole old one or the whole new one is there.

A new folder is written beside its place and renamed. Into one that exists the map comes in two strides, as other things may lie
there: it is written into a hidden folder within, which one rename makes the map that readers see (`present_folder`); then its
files are put in the places of the old ones, and the hidden folder goes. Whoever is killed between leaves the new map in the
hidden folder, and the next writer ends the work. What killed writers left half written is removed by the next writer, too.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from alora_trainer.artefact.files import ADAPTER_CONFIG_FILE, CONFIG_FILE, is_ours, is_replaceable
from alora_trainer.errors import ALoRAError

try:
    import fcntl
except ImportError:  # not on Windows: leftovers are then known by their age alone
    fcntl = None  # type: ignore[assignment]

# Within a map's folder: a whole map, whose files are on their way to their places.
_ARRIVING = ".importance-map-new"
_STAGING = ".importance-map-"
_RANDOM = "[a-z0-9_]{8}"  # as `tempfile.mkdtemp` ends its names
# Where the system cannot say whether a leftover's writer lives.
_ABANDONED_SECONDS = 24 * 3600.0
# They say how the other files are to be read: they go first and come last, so that no mixture can be read by anybody.
_CONFIGS = (CONFIG_FILE, ADAPTER_CONFIG_FILE)


def present_folder(folder: Path) -> Path:
    """Where the files of the map in `folder` are: there, or in the hidden folder that a killed writer left whole."""
    arriving = folder / _ARRIVING
    return arriving if not arriving.is_symlink() and (arriving / CONFIG_FILE).is_file() else folder


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill an empty folder, and make that the map in `folder` when it is whole.

    What was in `folder` stays until then, and other files than a map's for good.

    Raises:
        ALoRAError: `folder` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ALoRAError(f"{folder} is a file: name a folder for the importance map")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as alive:
        # Within the folder, where it is there: that is the same file system, whatever is mounted or linked.
        home, prefix = (folder, _STAGING) if folder.is_dir() else (folder.parent, f".{folder.name}-")
        with _locked(home):
            if home == folder:
                _arrive(folder)
            _remove_leftovers(folder)
            staging = Path(tempfile.mkdtemp(prefix=prefix, dir=home))
            alive.enter_context(_locked(staging))
        try:
            write(staging)
            for path in staging.iterdir():
                _sync(path)
            _sync_names(staging)
            _move_into_place(staging, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    _remove_leftovers(folder, replaced=True)


def _move_into_place(staging: Path, folder: Path) -> None:
    if not folder.is_dir():
        os.rename(staging, folder)
        os.chmod(folder, 0o755)
        return
    os.chmod(staging, 0o755)
    with _locked(folder):
        _arrive(folder)  # another writer's, which was killed meanwhile
        os.rename(staging, folder / _ARRIVING)
        _sync_names(folder)
        _arrive(folder)


def _arrive(folder: Path) -> None:
    """Put the files of a map that has come into `folder` in their places. Whoever is killed here can do it again."""
    arriving = folder / _ARRIVING
    if present_folder(folder) != arriving:
        return
    new = sorted(path.name for path in arriving.iterdir())
    old = [path.name for path in folder.iterdir() if not path.name.startswith(_STAGING)]
    alone = all(is_ours(name) for name in old)  # whatever else is in the folder may need an adapter beside it
    stale = [name for name in old if is_ours(name) and name not in new and (alone or is_replaceable(name))]
    for name in [*(name for name in _CONFIGS if name in new), *stale]:
        (folder / name).unlink(missing_ok=True)
    for name in sorted(new, key=lambda name: name in _CONFIGS):
        _place(arriving / name, folder / name)
    _sync_names(folder)
    rest = tempfile.mkdtemp(prefix=_STAGING, dir=folder)
    os.rename(arriving, rest)
    shutil.rmtree(rest, ignore_errors=True)


def _place(source: Path, target: Path) -> None:
    """Let `target` be the file `source`, which stays where it is, too; without a copy where the file system can."""
    partial = target.parent / f"{_STAGING}partial"
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:
        shutil.copyfile(source, partial)
        _sync(partial)
    os.replace(partial, target)
    partial.unlink(missing_ok=True)  # it stays where both are one file already


def _remove_leftovers(folder: Path, *, replaced: bool = False) -> None:
    """Remove what writers of the map in `folder` left half done, but nothing of one that lives.

    Args:
        replaced: whether `folder` has its map now, so that the older ones that were moved aside are no loss.
    """
    within = re.compile(rf"{re.escape(_STAGING)}({_RANDOM}|partial|new)")
    beside = re.compile(rf"\.{re.escape(folder.name)}-{'(old-)?' if replaced else ''}{_RANDOM}")
    found = [path for path in folder.iterdir() if within.fullmatch(path.name)] if folder.is_dir() else []
    found += [
        path for path in folder.parent.iterdir() if beside.fullmatch(path.name) and _is_staging(path, folder.name)
    ]
    for path in found:
        if path == present_folder(folder):
            continue
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        elif _is_abandoned(path):
            shutil.rmtree(path, ignore_errors=True)


def _is_staging(path: Path, name: str) -> bool:
    """Whether a folder beside a map's is one that `tempfile` made (for its owner alone) with nothing but a map in it."""
    if path.is_symlink() or not path.is_dir() or path.stat().st_mode & 0o777 != 0o700:
        return False
    return all(is_ours(inside.name) or inside.name == name for inside in path.iterdir())


def _is_abandoned(folder: Path) -> bool:
    with contextlib.suppress(OSError), _locked(folder, wait=False) as certain:
        if certain:
            return True
        return time.time() - folder.stat().st_mtime > _ABANDONED_SECONDS
    return False  # its writer holds it


@contextmanager
def _locked(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a folder against other writers, whose death lets go of it.

    Args:
        wait: for whoever holds it; else that is a BlockingIOError.

    Yields:
        whether it is held: not every system and file system can.
    """
    if fcntl is None:
        yield False
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        held = True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except OSError:
            held = False
        yield held
    finally:
        os.close(handle)


def _sync(path: Path) -> None:
    """Wait until the disk has a file."""
    with contextlib.suppress(PermissionError), path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_names(folder: Path) -> None:
    """Wait until the disk has the names in a folder, where that can be asked for."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
