"""Tables as text: columns of equal width, which at a narrow terminal stand below each other and not beyond its edge."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

from alora_trainer.basics.printable import markdown_text

_BESIDE = 2  # characters that a Markdown table has at both ends


def terminal_width() -> int | None:
    """Characters in a line of the terminal that results go to; None where they go into a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def markdown_table(rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """A Markdown table that is also readable as plain text: the first column to the left, numbers to the right.

    Args:
        rows: the first is the header.
        width: that a line may have; with more columns than fit, several tables stand below each other, each of which begins
            with the first column. None for one table.
    """
    cells = [[markdown_text(cell) for cell in row] for row in rows]
    return "\n\n".join(_markdown(part) for part in _parts(cells, width, between=3, beside=_BESIDE))


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    widths = _widths(rows)
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("| " + " | ".join(cells) + " |")
    rule = [":" + "-" * (widths[0] - 1)] + ["-" * (width - 1) + ":" for width in widths[1:]]
    lines.insert(1, "| " + " | ".join(rule) + " |")
    return "\n".join(lines)


def plain_table(rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """The same without rules, all columns to the left."""
    return "\n\n".join(_plain(part) for part in _parts(rows, width, between=2, beside=0))


def _plain(rows: Sequence[Sequence[str]]) -> str:
    widths = _widths(rows)
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]


def _parts(rows: Sequence[Sequence[str]], width: int | None, *, between: int, beside: int) -> list[list[list[str]]]:
    """Tables of as many columns as fit into `width`, each with the first."""
    first, *others = _widths(rows)
    groups: list[list[int]] = [[]]
    used = start = first + 2 * beside
    for column, own in enumerate(others, start=1):
        if width is not None and groups[-1] and used + between + own > width:
            groups.append([])
            used = start
        groups[-1].append(column)
        used += between + own
    return [[[row[0], *(row[column] for column in group)] for row in rows] for group in groups]
