"""A page's table that can be sorted by each of its columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class PageCell:
    """A cell of a table: what it shows, what it is sorted by (a number, or its text), and its class."""

    text: str
    value: float | None = None
    kind: str = ""
    html: str | None = None


def sortable(header: Sequence[str], lines: Sequence[tuple[str, Sequence[PageCell]]], marked: Sequence[str] = ()) -> str:
    """A table that can be sorted by each of its columns.

    Args:
        header: of the columns; the first are text where the first line's cells are of the kind "text".
        lines: the row of the board that each line is about, and its cells.
        marked: rows whose lines stand out.
    """
    kinds = [cell.kind for cell in lines[0][1]] if lines else [""] * len(header)
    head = "".join(
        f'<th scope="col"{" class=text" if kind == "text" else ""}><button type="button">{escape(name)}</button></th>'
        for name, kind in zip(header, kinds, strict=True)
    )
    body = []
    for row, cells in lines:
        own = "".join(_cell(cell) for cell in cells)
        body.append(f'<tr data-row="{escape(row)}"{" class=reference" if row in marked else ""}>{own}</tr>')
    return (
        f'<div class="scroll" tabindex="0"><table class="sorted"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _cell(cell: PageCell) -> str:
    sorted_by = "" if cell.kind == "text" else f' data-value="{"" if cell.value is None else repr(cell.value)}"'
    kind = f' class="{cell.kind}"' if cell.kind else ""
    return f"<td{kind}{sorted_by}>{cell.html if cell.html is not None else escape(cell.text)}</td>"
