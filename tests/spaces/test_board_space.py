"""The Space in spaces/board: what it shows, and, where Gradio is installed, that it answers over HTTP."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tests.board.made_up_board import made_up_board

SPACE = Path(__file__).resolve().parents[2] / "spaces" / "board"


@pytest.fixture
def views(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(SPACE))
    import views

    (tmp_path / "boards").mkdir()
    (tmp_path / "boards" / "little.json").write_text(json.dumps(made_up_board()))
    monkeypatch.setattr(views, "BOARDS", tmp_path / "boards")
    yield views
    for name in ("views", "app"):
        sys.modules.pop(name, None)


def test_the_hub_finds_the_app() -> None:
    front = yaml.safe_load((SPACE / "README.md").read_text().split("---")[1])
    assert front["sdk"] == "gradio" and (SPACE / front["app_file"]).is_file()
    assert len(front["short_description"]) <= 60  # the Hub takes no longer one
    assert "gradio" in (SPACE / "requirements.txt").read_text()


def test_a_board_stands_in_a_frame_that_reaches_nothing(views: ModuleType) -> None:
    assert views.board_names() == ["little"]
    shown = views.show_named("little")
    (inside,) = re.findall(r'srcdoc="([^"]*)"', shown)
    assert unescape(inside).startswith("<!DOCTYPE html>") and "little on sums" in unescape(inside)
    assert 'sandbox="allow-scripts"' in shown  # and not allow-same-origin


def test_what_is_no_board_is_said(views: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    assert "is no board" in views.show_board(tmp_path / "x.json")
    for name in (None, "../secrets", "none"):
        assert "Choose a board" in views.show_named(name)


@pytest.mark.parametrize("asked", ["", "name", "/etc/passwd", "../x/y", "./map", "~/map", str(SPACE)])
def test_folders_of_the_machine_are_not_looked_at(views: ModuleType, asked: str) -> None:
    assert views.inspect_map(asked).startswith("Name a map of the Hub")


def test_it_answers(views: ModuleType) -> None:
    pytest.importorskip("gradio", reason="gradio is not installed: pip install -r spaces/board/requirements.txt")
    import app
    import requests

    made = app.make_app()
    _, url, _ = made.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    try:
        assert "ALoRA board" in requests.get(url, timeout=30).text
        call = requests.post(f"{url}gradio_api/call/named", json={"data": ["little"]}, timeout=30).json()
        told = requests.get(f"{url}gradio_api/call/named/{call['event_id']}", timeout=60).text
        assert "event: complete" in told and "little on sums" in told
    finally:
        made.close()
