"""A map written over an old one: a kill at any file operation leaves the whole old or the whole new one."""

from __future__ import annotations

import builtins
import fcntl
import io
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from alora_trainer import ImportanceMap
from alora_trainer.artefact import files
from alora_trainer.artefact.hub.download import fetch
from alora_trainer.artefact.hub.inspect import describe
from alora_trainer.artefact.map_folder import present_folder, write_folder
from alora_trainer.artefact.reading import check_reference, verify_map
from tests.tiny_map import make_map

OLD, NEW = make_map(blocks=1, values=1), make_map(blocks=1, values=2)
USERS = {"notes.txt": "mine", ".git/HEAD": "ref", "checkpoints/one/model.bin": "weights"}
_OPERATIONS = ("rename", "replace", "link", "unlink", "remove", "rmdir", "mkdir", "chmod", "fsync", "open")


class Killed(BaseException):
    pass


@contextmanager
def killed_at(operation: int) -> Iterator[list[str]]:
    """From its n-th file operation on, this process does nothing any more: neither that operation nor what would clean up."""
    done: list[str] = []

    def dying(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **settings: Any) -> Any:
            if name != "open" or any(str(mode)[0] in "wxa" or "+" in str(mode) for mode in arguments[1:2]):
                done.append(name)
                if len(done) >= operation:
                    raise Killed
            return real(*arguments, **settings)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in _OPERATIONS[:-1]:
            patch.setattr(os, name, dying(name, getattr(os, name)))
        for module in (io, builtins):
            patch.setattr(module, "open", dying("open", builtins.open if module is builtins else io.open))
        yield done


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)
    monkeypatch.setattr("alora_trainer.artefact.writing.draw_heatmap", lambda norms, path: False)


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("new") / "map"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("alora_trainer.artefact.writing.draw_heatmap", lambda norms, path: False)
        NEW.save_pretrained(folder)
    return folder


def write_users(folder: Path) -> None:
    for name, content in USERS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def every_kill(start: Path, work: Path, write: Callable[[Path], None]) -> Iterator[Path]:
    """The folder `map` in `work` after a kill at each operation of `write`, which began with what is in `start`."""
    for operation in range(1, 500):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(start, work)
        with killed_at(operation) as done, suppress(Killed):
            write(work / "map")
        yield work / "map"
        if len(done) < operation:
            assert operation > 10  # more, where Python lets all that opens files be counted
            return


def read_everywhere(folder: Path) -> ImportanceMap:
    """The map in a folder, by all that reads one."""
    verify_map(folder)
    check_reference(folder)
    assert describe(str(folder)).startswith(str(folder))
    place, _ = fetch(str(folder))
    assert ImportanceMap.from_pretrained(place) == ImportanceMap.from_pretrained(folder)
    return ImportanceMap.from_pretrained(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in present_folder(folder).iterdir() if files.is_ours(path.name)}


def copied(source: Path) -> Callable[[Path], None]:
    """Writes the map that is in `source`, by the operations of any writer, and quickly."""

    def write(staging: Path) -> None:
        for path in source.iterdir():
            with (staging / path.name).open("wb") as file:
                file.write(path.read_bytes())

    return lambda folder: write_folder(folder, write)


@pytest.mark.parametrize("beside_others", [False, True], ids=["alone", "beside others"])
def test_a_kill_leaves_the_old_or_the_new_map(new: Path, tmp_path: Path, beside_others: bool) -> None:
    start = tmp_path / "start" / "map"
    OLD.save_pretrained(start, storage=["float32", "log8"], max_shard_bytes=600)  # files that the new one has not
    before, after = contents(start), contents(new)
    if beside_others:
        write_users(start)
    found = []
    for folder in every_kill(start.parent, tmp_path / "work", copied(new)):
        found.append(contents(folder))
        assert found[-1] in (before, after)
        if found[-1] != found[len(found) - 2]:  # the first one that is half moved
            assert read_everywhere(folder) == NEW
        for name, content in USERS.items() if beside_others else ():
            assert (folder / name).read_text() == content
        copied(new)(folder)  # the next writer ends or clears away what was begun
        assert contents(folder) == after and present_folder(folder) == folder
        assert not [path for path in tmp_path.rglob(".*map-*")]
        assert (folder / ".git").exists() == beside_others
    assert found[0] == before and found[-1] == after and found.count(after) > 5


def test_a_kill_while_the_first_map_is_written(new: Path, tmp_path: Path) -> None:
    (tmp_path / "start").mkdir()
    for folder in every_kill(tmp_path / "start", tmp_path / "work", copied(new)):
        assert not folder.exists() or contents(folder) == contents(new)
        copied(new)(folder)
        assert [path.name for path in folder.parent.iterdir()] == ["map"]
    assert read_everywhere(folder) == NEW


def test_a_kill_while_the_move_of_a_killed_writer_is_ended(new: Path, tmp_path: Path) -> None:
    """Killed twice: the second time in ending what the first one began."""
    start, third = tmp_path / "start" / "map", tmp_path / "third"
    OLD.save_pretrained(start)
    make_map(blocks=1, values=3).save_pretrained(third)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            NEW.save_pretrained(start)
    assert not (start / files.CONFIG_FILE).exists() and read_everywhere(start) == NEW
    for folder in every_kill(start.parent, tmp_path / "work", copied(third)):
        assert contents(folder) in (contents(new), contents(third))
    assert contents(folder) == contents(third)


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(source: Path, target: Path) -> None:
        raise PermissionError("no links here")

    OLD.save_pretrained(tmp_path / "map")
    monkeypatch.setattr(os, "link", refused)
    NEW.save_pretrained(tmp_path / "map")
    assert read_everywhere(tmp_path / "map") == NEW


def test_a_linked_folder_stays_a_link(tmp_path: Path) -> None:
    OLD.save_pretrained(tmp_path / "disk" / "map")
    (tmp_path / "map").symlink_to(tmp_path / "disk" / "map")
    NEW.save_pretrained(tmp_path / "map")
    assert (tmp_path / "map").is_symlink() and ImportanceMap.from_pretrained(tmp_path / "disk" / "map") == NEW


def test_leftovers_are_cleared_but_of_the_living(tmp_path: Path) -> None:
    """Those of today's names, and the full-size ones that earlier versions left beside the folder."""
    folder = tmp_path / "map"
    OLD.save_pretrained(folder)
    dead = [tmp_path / ".map-abcd1234", tmp_path / ".map-old-abcd1234", folder / ".importance-map-abcd1234"]
    living = folder / ".importance-map-efgh5678"
    for leftover in [*dead, living]:
        shutil.copytree(
            folder, leftover / "map" if "old" in leftover.name else leftover, ignore=lambda *_: [".importance*"]
        )
        leftover.chmod(0o700)
    users = [tmp_path / ".map-of_rome_", tmp_path / ".map-archives", tmp_path / ".mapping-abcd1234"]
    for kept in users:
        OLD.save_pretrained(kept)
    handle = os.open(living, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    NEW.save_pretrained(folder)
    assert not any(leftover.exists() for leftover in dead)
    assert living.exists() and all(kept.exists() for kept in users)
    os.close(handle)
    NEW.save_pretrained(folder)
    assert not living.exists() and read_everywhere(folder) == NEW


def test_a_planted_link_is_no_map(tmp_path: Path) -> None:
    OLD.save_pretrained(tmp_path / "map")
    NEW.save_pretrained(tmp_path / "elsewhere")
    (tmp_path / "map" / ".importance-map-new").symlink_to(tmp_path / "elsewhere")
    assert read_everywhere(tmp_path / "map") == OLD
    OLD.save_pretrained(tmp_path / "map")
    assert read_everywhere(tmp_path / "elsewhere") == NEW
    assert not (tmp_path / "map" / ".importance-map-new").exists()
