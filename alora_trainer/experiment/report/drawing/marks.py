"""A method's marker as SVG."""

from __future__ import annotations

from collections.abc import Sequence

from alora_trainer.experiment.report.style import Look, look

# By the names that matplotlib gave them, as paths about the origin.
SHAPES = {
    "o": "M4 0A4 4 0 1 1-4 0A4 4 0 1 1 4 0Z",
    "s": "M-3.6-3.6H3.6V3.6H-3.6Z",
    "^": "M0-4.6L4.3 3.4H-4.3Z",
    "v": "M0 4.6L4.3-3.4H-4.3Z",
    "D": "M0-4.8L4.8 0L0 4.8L-4.8 0Z",
    "P": "M-1.5-4.5H1.5V-1.5H4.5V1.5H1.5V4.5H-1.5V1.5H-4.5V-1.5H-1.5Z",
    "X": "M-4-2L-2-4L0-2L2-4L4-2L2 0L4 2L2 4L0 2L-2 4L-4 2L-2 0Z",
    "<": "M-4.6 0L3.4-4.3V4.3Z",
    ">": "M4.6 0L-3.4-4.3V4.3Z",
    "p": "M0-4.6L4.4-1.4L2.7 3.7H-2.7L-4.4-1.4Z",
    "*": "M0-6L1.5-1.9H5.8L2.3.8L3.6 5L0 2.5L-3.6 5L-2.3.8L-5.8-1.9H-1.5Z",
}
PUBLISHED_ROW = "published"


def look_of(row: str, rows: Sequence[str]) -> Look:
    """How a row is drawn; what others published is grey."""
    return Look("#8a8a8a", "o", hollow=True) if row == PUBLISHED_ROW else look(row, rows)


def shape(style: Look) -> str:
    """A marker about the origin; hollow ones have the page's ground inside, so that no line shows through."""
    face = "var(--ground)" if style.hollow else style.colour
    return f'<path d="{SHAPES[style.marker]}" fill="{face}" stroke="{style.colour}" stroke-width="1.3"/>'


def swatch(row: str, rows: Sequence[str]) -> str:
    """A row's marker alone, for lists."""
    inside = f'<g class="row">{shape(look_of(row, rows))}</g>'
    return f'<svg class="swatch" viewBox="-7 -7 14 14" aria-hidden="true">{inside}</svg>'
