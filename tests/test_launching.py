"""What tests that take two processes are launched by: a native crash is tried once more, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launching import launch_two


def script(folder: Path, body: str) -> str:
    path = folder / "script.py"
    path.write_text(
        f"import os, sys\nfrom pathlib import Path\nfolder = Path({str(folder)!r})\nrank = os.environ['RANK']\n{body}\n",
        encoding="utf-8",
    )
    return str(path)


def test_a_native_crash_is_tried_once_more_and_said(tmp_path: Path) -> None:
    once = "mark = folder / 'tried'\nif rank == '1' and not mark.exists():\n    mark.touch()\n    os.abort()"
    with pytest.warns(UserWarning, match="a process died by a signal, and both are tried again"):
        launch_two(script(tmp_path, f"{once}\n(folder / rank).touch()"))
    assert (tmp_path / "0").exists() and (tmp_path / "1").exists()


@pytest.mark.filterwarnings("ignore:.*tried again")
def test_a_second_native_crash_fails(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="exit codes"):
        launch_two(script(tmp_path, "os.abort()"))


@pytest.mark.filterwarnings("error")
def test_what_python_tells_of_fails_at_once(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="no such luck"):
        launch_two(script(tmp_path, "sys.exit('no such luck')"))
