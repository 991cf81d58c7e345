"""A step's folder, killed at any moment: it is whole or not there, and never stands in the way for ever."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alora_trainer.basics.files import write_text
from alora_trainer.basics.folder_lock import folder_lock
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.run.stage import Stage

TOUCHES = ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "os.chmod", "tempfile.mkstemp")


def killed_at(number: int, work: Callable[[], Any]) -> bool:
    """Do `work` in a process that is gone without a word before its file operation of this number; whether it came so far."""
    child = os.fork()
    if child == 0:
        left = [number]

        def count(event: str, arguments: Any) -> None:
            if event in TOUCHES:
                left[0] -= 1
                if left[0] == 0:
                    os._exit(9)

        sys.addaudithook(count)
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_every_file_operation(tmp_path: Path) -> None:
    """A finished step is made anew with other settings; killed anywhere, what is there is the old step or the new one."""
    for number in range(1, 200):
        run = tmp_path / str(number)
        old, new = (Stage(run / "lora", {"rate": rate}, "training") for rate in (1, 2))
        old.begin()
        for name in ("adapter/adapter_model.safetensors", "checkpoints/checkpoint-3/trainer_state.json"):
            write_text(old.folder / name, "old")
        old.finish({"loss": 1})

        def again(run: Path = run, new: Stage = new) -> None:
            with folder_lock(run):
                new.begin(overwrite=True)
                write_text(new.folder / "adapter" / "adapter_model.safetensors", "new")
                new.finish({"loss": 2})

        killed = killed_at(number, again)
        adapter = old.folder / "adapter" / "adapter_model.safetensors"
        for stage, text in ((old, "old"), (new, "new")):
            if stage.finished(overwrite=True) is not None:
                assert adapter.read_text() == text
        again()
        assert new.finished() == {"loss": 2} and adapter.read_text() == "new"
        assert sorted(path.name for path in run.iterdir()) == ["lora"]
        files = {path.relative_to(old.folder).as_posix() for path in old.folder.rglob("*") if path.is_file()}
        assert files == {"settings.json", "training.json", "adapter/adapter_model.safetensors"}
        if not killed:
            break
    assert 20 < number < 199  # all of them were tried


def test_what_is_refused_is_known_without_writing_anything(tmp_path: Path) -> None:
    stage, other = (Stage(tmp_path / "lora", {"rate": rate}, "training") for rate in (1, 2))
    stage.check()
    assert not stage.folder.exists()
    (stage.folder).mkdir()
    (stage.folder / ".settings.json-a1b2c3d4.partial").write_text("{")
    stage.check()  # ours
    (stage.folder / "mine.txt").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(ALoRAError, match="holds files that no run made"):
            stage.check(overwrite=overwrite)
    (stage.folder / "mine.txt").unlink()
    stage.begin()
    other.check()  # nothing was done yet, so nothing would be lost
    stage.finish({})
    with pytest.raises(ALoRAError, match="made with other settings \\(rate was 1 and is 2\\)"):
        other.check()
    other.check(overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ALoRAError, match="holds files that no run made"):
        Stage(tmp_path / "file", {}, "training").check(overwrite=True)
