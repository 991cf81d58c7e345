"""What a disk refuses is one line that names the path, whichever library met it; every other error stays what it was."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from alora_trainer.basics.disk_errors import disk_error, disk_errors
from alora_trainer.errors import ALoRAError

FULL = Path("/dev/full")


def test_errors_of_the_system_name_the_path_and_what_to_do() -> None:
    for number, words in (
        (errno.ENOSPC, "No space left on device: make room there"),
        (errno.EROFS, "Read-only file system: choose another --output_dir"),
        (errno.EACCES, "Permission denied: get the permission"),
        (errno.ENAMETOOLONG, "File name too long: choose a shorter name"),
        (errno.ENOTDIR, "Not a directory: a part of this path is a file"),
        (errno.ENOENT, "No such file or directory"),
    ):
        line = disk_error(OSError(number, "x", "/some/file"), Path("run"))
        assert line is not None and line.startswith(f"/some/file: {words}")
    assert str(disk_error(OSError(errno.ENOSPC, "x"), Path("run"))).startswith("run: No space left on device")


def test_errors_of_libraries_that_say_it_in_their_own_words() -> None:
    folder = Path("run")
    for error in (
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        Exception("No space left on device (os error 28)"),
        RuntimeError("write(): fd 3 failed with No space left on device"),
        OSError(errno.ENOSPC, "Error writing bytes to file. Detail: [errno 28] No space left on device"),
    ):
        assert str(disk_error(error, folder)).startswith("run: No space left on device: make room there"), error
    at = SafetensorError('Error while serializing: I/O error: Permission denied (os error 13) at path "/a/.tmp9"')
    assert str(disk_error(at, folder)).startswith("/a/.tmp9: Permission denied")


def test_the_writer_of_torch_which_does_not_say_why(tmp_path: Path) -> None:
    if not FULL.exists() or not stat.S_ISCHR(FULL.stat().st_mode):
        pytest.skip("needs /dev/full")
    told = r"a file below .* could not be written whole \(\d+ MiB are free there"
    with pytest.raises(ALoRAError, match=told), disk_errors(tmp_path):
        torch.save({"a": torch.ones(1000)}, FULL)
    with pytest.raises(ALoRAError, match="No space left on device"), disk_errors(tmp_path), FULL.open("wb") as file:
        file.write(b"x")


def test_what_an_error_was_raised_from_counts_and_others_pass(tmp_path: Path) -> None:
    def caused(error: Exception, cause: Exception) -> Exception:
        error.__cause__ = cause
        return error

    assert disk_error(caused(RuntimeError("saving failed"), OSError(errno.ENOSPC, "x", "/a"))) is not None
    for other in (
        RuntimeError("CUDA error"),
        KeyError("unexpected"),
        ConnectionResetError(errno.ECONNRESET, "reset"),
        TimeoutError(errno.ETIMEDOUT, "late"),
        OSError("a library's own words"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ):
        assert disk_error(other, tmp_path) is None
        with pytest.raises(type(other)), disk_errors(tmp_path):
            raise other
