"""One command at a time in a folder."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from alora_trainer.basics import folder_lock as module
from alora_trainer.basics.folder_lock import LOCK_FILE, folder_lock
from alora_trainer.errors import ALoRAError

# What holds the lock as another command would, until it is killed, without the time that one takes to start.
HOLDER = """
import fcntl, json, sys, time
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print(json.dumps({"host": "there", "process": 7, "started": "today", "command": "alora run a.yaml"}), file=file, flush=True)
print("held", flush=True)
time.sleep(60)
"""


def test_the_second_is_told_who_the_first_is_and_may_come_later(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    with folder_lock(folder):
        holder = json.loads((folder / LOCK_FILE).read_text())
        assert (holder["host"], holder["process"]) == (socket.gethostname(), os.getpid())
        with pytest.raises(ALoRAError) as refused, folder_lock(folder):
            pass
        message = str(refused.value)
        assert f"another command works in {folder}" in message and holder["command"] in message
        assert f"process {os.getpid()} on {socket.gethostname()}, since {holder['started']}" in message
        assert json.loads((folder / LOCK_FILE).read_text()) == holder  # the one that was refused left it alone
        with folder_lock(tmp_path / "other"):
            pass
    assert list(tmp_path.iterdir()) == []  # folders made for the lock alone went with it
    with folder_lock(folder):
        (folder / "kept.txt").write_text("x")
    assert [path.name for path in folder.iterdir()] == ["kept.txt"]


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    path = tmp_path / LOCK_FILE
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        told = re.escape("(process 7 on there, since today: alora run a.yaml)")
        with pytest.raises(ALoRAError, match=told), folder_lock(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert path.exists()
        with folder_lock(tmp_path):
            assert json.loads(path.read_text())["process"] == os.getpid()
    assert not path.exists()


def test_what_was_left_half_written_is_removed_by_who_holds_the_lock(tmp_path: Path) -> None:
    left = tmp_path / "record" / ".settings.json-a1b2c3d4.partial"
    left.parent.mkdir()
    left.write_text("{")
    with folder_lock(tmp_path):
        assert not left.exists() and left.parent.exists()
        left.write_text("{")  # somebody's who is at work now
        with pytest.raises(ALoRAError), folder_lock(tmp_path):
            pass
        assert left.exists()


def test_a_disk_without_locks_goes_by_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "fcntl", None)
    told = f"if it was killed, remove {re.escape(str(tmp_path / LOCK_FILE))}"
    with folder_lock(tmp_path), pytest.raises(ALoRAError, match=told), folder_lock(tmp_path):
        pass
    with folder_lock(tmp_path):
        pass
