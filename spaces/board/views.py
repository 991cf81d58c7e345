"""What the Space shows, as text and HTML; it knows nothing of Gradio, so that it can be tested without."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

from alora_trainer import ALoRAError
from alora_trainer.artefact.hub.inspect import describe
from alora_trainer.experiment.board.board_json import read_board_json
from alora_trainer.experiment.board.page import board_page

BOARDS = Path(__file__).parent / "boards"


def board_names() -> list[str]:
    """The boards that came with the Space."""
    return sorted(path.stem for path in BOARDS.glob("*.json"))


def show_board(path: str | Path | None) -> str:
    """A board's page in a frame of its own, whose script reaches nothing outside of it; or what is wrong with the file."""
    if path is None:
        return "<p>Choose a board, or upload a <code>board.json</code>.</p>"
    try:
        page = board_page([read_board_json(Path(path))])
    except (ALoRAError, json.JSONDecodeError) as error:
        return f"<p><strong>{escape(str(error))}</strong></p>"
    look = "width:100%;height:85vh;border:0"
    return f'<iframe title="board" sandbox="allow-scripts" style="{look}" srcdoc="{escape(page)}"></iframe>'


def show_named(name: str | None) -> str:
    """One of the boards that came with the Space."""
    return show_board(BOARDS / f"{name}.json" if name in board_names() else None)


def inspect_map(repo: str) -> str:
    """What a map of the Hub is; or why that cannot be said.

    Folders are refused: a Space is a machine that others reach.
    """
    repo = repo.strip()
    if not repo or "/" not in repo or Path(repo).exists() or repo.startswith((".", "/", "~")):
        return "Name a map of the Hub: organisation/name, or organisation/name@revision."
    try:
        return describe(repo, token=False)
    except ALoRAError as error:
        return str(error)
