"""`alora board`: the dry run, the page of several boards, and what is said of wrong arguments."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from alora_trainer.cli.command_line import main
from tests.board.made_up_board import made_up_board
from tests.board.tiny_board import write_board_files


@pytest.fixture(autouse=True)
def _undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alora_trainer.cli.command_line.configure_output", lambda: None)


def test_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    board = write_board_files(tmp_path)
    assert main(["board", str(board), "--dry_run", "--only", "lora"]) == 0
    assert "at most 4 trainings" in capfd.readouterr().out
    for name in ("one", "two"):
        (tmp_path / f"{name}.json").write_text(json.dumps(made_up_board(name)))
    sources = [str(tmp_path / f"{name}.json") for name in ("one", "two")]
    assert main(["board", "render", *sources, "--output_dir", str(tmp_path / "page")]) == 0
    assert "little on sums (two)" in (tmp_path / "page" / "board.html").read_text()
    said = Counter()
    for arguments, message in (
        (["render"], "nothing to render"),
        (["render", sources[0], "--only", "lora"], "--only is of a board that is run"),
        ([str(board), str(board)], "one board file at a time"),
        ([str(board), "--device", "H100"], "--device is of --dry_run"),
        ([str(board), "--dry_run", "--only", "lroa"], "did you mean rows.lora"),
        ([str(board), "--dry_run", "--seed", "1"], "unknown option --seed"),
        ([str(tmp_path / "none.yaml")], "cannot be read"),
    ):
        assert main(["board", *arguments]) == 2
        said[message] += message in capfd.readouterr().err
    assert set(said.values()) == {1}
