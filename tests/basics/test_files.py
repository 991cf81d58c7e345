"""Files that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from alora_trainer.basics.files import is_leftover, remove_folder, remove_leftovers, replacing, write_text
from alora_trainer.basics.hub_ids import is_hub_id


def test_a_file_is_replaced_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file.txt"
    with replacing(path) as partial:
        partial.write_text("first")
        assert not path.exists() and partial.suffix == ".partial" and partial.parent == path.parent
    assert path.read_text() == "first" and path.stat().st_mode & 0o777 == 0o644
    write_text(path, "second")
    assert path.read_text() == "second"
    assert [item.name for item in path.parent.iterdir()] == ["file.txt"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "first")
    with pytest.raises(RuntimeError, match="full"), replacing(path) as partial:
        partial.write_text("half")
        raise RuntimeError("full")
    assert path.read_text() == "first"
    assert [item.name for item in tmp_path.iterdir()] == ["file.txt"]


def test_leftovers_are_known_and_nothing_else_is(tmp_path: Path) -> None:
    """A file that a killed process was writing, a folder that one was removing; not what is merely called alike."""
    (tmp_path / "run").mkdir()
    with replacing(tmp_path / "run" / "settings.json") as partial:
        assert is_leftover(partial)
        left = partial.name
    kept = [".mine.partial", "settings.json-abcd1234.partial", ".a-ABCD1234.partial", "x.partial"]
    for name in (left, *kept):
        (tmp_path / "run" / name).write_text("x")
    (tmp_path / ".run-a1b2c3d4.partial" / "run").mkdir(parents=True)
    (tmp_path / ".run-a1b2c3d4.partial" / "run" / left).write_text("x")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted([*kept, "settings.json"])
    remove_folder(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_what_is_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("organisation/name-1.5_b") and is_hub_id(Path("organisation/name"))
    for other in (None, "", "name", "/organisation/name", "./name", "~/name", "a/b/c", "organisation/", "a b/c"):
        assert not is_hub_id(other), other
    (tmp_path / "here" / "model").mkdir(parents=True)
    assert not is_hub_id("here/model")
