"""A board's page: one HTML file that needs nothing beside it and no network; several people's boards side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from alora_trainer.basics.files import write_text
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.board.board_json import number_in, read_board_json
from alora_trainer.experiment.board.measures import MEASURES
from alora_trainer.experiment.board.page_chart import AXES, drawing, figure, first_axis, marks_of, shown_value
from alora_trainer.experiment.board.page_tables import (
    comparisons_table,
    findings,
    kinds_table,
    rows_table,
    trials_table,
)
from alora_trainer.experiment.report.drawing.marks import PUBLISHED_ROW
from alora_trainer.experiment.report.drawing.page import filters, whole_page
from alora_trainer.experiment.report.drawing.pictures import svg_file

PAGE_FILE = "board.html"
_EXPLAINED = {
    "learned": "by how much the figure that is learned by fell (cross-entropy) or rose (accuracy) from the untouched model's",
    "rise": "mean cross-entropy of general text that nothing was trained on, less the untouched model's, in nats a token",
    "recorded or not": "whether the kind of text (not these documents) is among those that importance was recorded on, "
    "or that were replayed",
    "rise at 90 %": "read off a row's curve where it has learned 90 % of what the reference learned with the same seed, "
    "between the trainings that there are and the untouched model; a dash where a seed never got there",
    "area": "how much forgetting a row's curve saves, as a share of what the reference forgot, the mean over all amounts of "
    "learning up to the reference's, read between the trainings as the rise at 90 % is; what a row did not learn it saves "
    "nothing of. A straight line to the reference has 0.5 (more is better)",
    "settings that one would take": "of the trials that learned enough on validation, the one that forgot least there",
    "without what guessing turns over": "of the items that are wrong both times one in so many is expected to turn over by "
    "guessing alone, which is taken away (docs/evaluation.md); below zero, less turned over than by guessing",
    "P (Holm)": "corrected within a measure for all comparisons that the board file plans, finished or not; over seeds a "
    "paired t-test, over items or documents a paired bootstrap, which says nothing about other seeds",
    "not better": "no difference is shown at 5 % after the correction",
}


def render_boards(sources: Sequence[str | Path], path: str | Path) -> Path:
    """Write the page of one or several boards.

    Args:
        sources: ``board.json`` files, or folders with one.
        path: of the page.

    Returns:
        `path`.

    Raises:
        ALoRAError: a source is no board, or is named twice.
    """
    write_text(Path(path), board_page(_read(sources)))
    return Path(path)


def render_picture(sources: Sequence[str | Path], path: str | Path) -> Path:
    """Write the curves of one or several boards as one SVG file: models and tasks side by side.

    Args:
        sources: as of `render_boards`.
        path: of the file.

    Returns:
        `path`.

    Raises:
        ALoRAError: as of `render_boards`.
    """
    boards = _read(sources)
    rows = _rows(boards)
    drawings = []
    for board in boards:
        published = [one for one in board["published"] if isinstance(one, Mapping)]
        for result in board["results"]:
            whose = f" ({board['board']})" if len(boards) > 1 else ""
            heading = f"{result['model']} on {result['task']}{whose}"
            marks = marks_of(result, published)
            drawings.append(drawing(marks, result, rows, first_axis(result, published), heading))
    write_text(Path(path), svg_file(drawings))
    return Path(path)


def _read(sources: Sequence[str | Path]) -> list[Mapping[str, Any]]:
    if not sources:
        raise ALoRAError("there is nothing to render: name board.json of a board")
    if len({Path(source).resolve() for source in sources}) < len(sources):
        raise ALoRAError("a board is named twice: name each once")
    return [read_board_json(Path(source)) for source in sources]


def board_page(boards: Sequence[Mapping[str, Any]]) -> str:
    """The page of boards that `read_board_json` read; the same boards give the same text."""
    rows = _rows(boards)
    title = " · ".join(dict.fromkeys(board["title"] for board in boards))
    sections = "".join(_board(board, boards, rows) for board in boards)
    terms = "".join(f"<dt>{escape(name)}</dt><dd>{escape(what)}</dd>" for name, what in _EXPLAINED.items())
    body = (
        f"{_filters(rows, boards)}"
        f"<h2>All rows</h2>\n{rows_table(boards, rows)}"
        '<p class="note">Sorted by a click on a column. The reference is marked. ± is the standard error over seeds.</p>\n'
        f'<div class="boards">{sections}</div>\n<h2>What the figures are</h2>\n<dl>{terms}</dl>\n'
    )
    return whole_page(title, body, AXES)


def _rows(boards: Sequence[Mapping[str, Any]]) -> list[str]:
    """All rows of all boards, once each, in the boards' order."""
    listed = [row["name"] for board in boards for row in board["rows"]]
    results = [result for board in boards for result in board["results"]]
    found = [entry["row"] for result in results for kind in ("finals", "rows") for entry in result[kind]]
    return list(dict.fromkeys([*listed, *found]))


def _filters(rows: Sequence[str], boards: Sequence[Mapping[str, Any]]) -> str:
    texts = {row["name"]: row["text"] for board in boards for row in board["rows"]}
    finished = {entry["row"] for board in boards for result in board["results"] for entry in result["rows"]}
    shown = [row for row in rows if row in finished]
    if any(board["published"] for board in boards):
        shown = [*shown, PUBLISHED_ROW]
    return filters(shown, rows, {PUBLISHED_ROW: "figures of others"} | texts)


def _board(board: Mapping[str, Any], boards: Sequence[Mapping[str, Any]], rows: Sequence[str]) -> str:
    return "".join(
        f"<section>{''.join(_section(board, result, boards, rows))}</section>\n" for result in board["results"]
    )


def _section(
    board: Mapping[str, Any], result: Mapping[str, Any], boards: Sequence[Mapping[str, Any]], rows: Sequence[str]
) -> Iterator[str]:
    whose = f" ({board['board']})" if len(boards) > 1 else ""
    yield f"<h2>{escape(result['model'])} on {escape(result['task'])}{escape(whose)}</h2>"
    unfinished = [str(name) for name in result["not_finished"]]
    if unfinished:
        yield f'<p class="warn">Not finished, and not on this board: {escape(", ".join(unfinished))}.</p>'
    if isinstance(board.get("left_out"), str):
        yield f'<p class="note">Left out: {escape(board["left_out"])}</p>'
    published = [one for one in board["published"] if isinstance(one, Mapping)]
    yield figure(drawing(marks_of(result, published), result, rows, first_axis(result, published)))
    for one in published:
        if one.get("task") == result["task"]:
            note = f" {one['note']}" if isinstance(one.get("note"), str) else ""
            source = f"{one.get('name')}, {one.get('source')}.{note}"
            yield f'<p class="note">Drawn beside: {escape(source)}</p>'
    yield _base(result)
    said = list(findings(result))
    if said:
        yield "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in said) + "</ul>"
    if result["comparisons"]:
        yield f"<details><summary>Comparisons</summary>{comparisons_table(result)}</details>"
    yield f"<details><summary>Rise by kind of general text (nats a token)</summary>{kinds_table(result)}</details>"
    yield f"<details><summary>All {len(result['trials'])} trials, on validation</summary>{trials_table(result)}</details>"
    yield f'<p class="note">Made by <code>{escape(str(board.get("command")))}</code>.</p>'


def _base(result: Mapping[str, Any]) -> str:
    base = result["base"]
    parts = [
        f"{MEASURES[name].label} {shown_value(name, value)}"
        for name in ("accuracy", "choices")
        if (value := number_in(base, name)) is not None
    ]
    chance, loss = number_in(base, "chance"), number_in(base, "cross_entropy")
    if chance is not None:
        parts.append(f"guessing gives {100 * chance:.1f} %")
    if loss is not None:
        parts.append(f"general cross-entropy {loss:.3f} nats a token")
    noise = number_in(result["noise"], "rise", "difference")
    floor = (
        ""
        if noise is None
        else f" By their seeds alone, two means of the reference's rise differ by up to {noise:.4f}."
    )
    kinds = [", ".join(str(kind) for kind in result[key]) or "none" for key in ("recorded", "other")]
    return (
        f'<p class="note">The untouched model: {escape("; ".join(parts))}.{escape(floor)} '
        f"General text of recorded kinds: {escape(kinds[0])}; of others: {escape(kinds[1])}.</p>"
    )
