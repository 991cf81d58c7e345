"""Horizontal bars, a row a method."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from alora_trainer.experiment.report.drawing.chart import Box
from alora_trainer.experiment.report.drawing.marks import look_of
from alora_trainer.experiment.report.drawing.pictures import Picture, titled
from alora_trainer.experiment.report.drawing.scales import ticks

_STEP, _LEFT, _RIGHT, _WIDTH = 17.0, 112.0, 412.0, 460.0


def bars(
    rows: Sequence[tuple[str, Sequence[tuple[float, str]]]], methods: Sequence[str], label: str, digits: int
) -> Picture:
    """A bar a row, of parts one after the other, the last of which is drawn full.

    Args:
        rows: method, and its parts: how long, and what it is.
        methods: all methods of the page, for their colours.
        label: of the axis, with its unit.
        digits: behind the point.
    """
    most = max([sum(length for length, _ in parts) for _, parts in rows] + [0.0]) or 1.0
    scale = (_RIGHT - _LEFT) / most
    bottom = 6 + _STEP * len(rows)
    inside = []
    for value in ticks(0, most):
        at = _LEFT + value * scale
        inside.append(f'<path class="grid" d="M{at:.2f} 4V{bottom:g}"/>')
        inside.append(f'<text class="quiet" x="{at:.2f}" y="{bottom + 13:g}" text-anchor="middle">{value:g}</text>')
    said = []
    for place, (method, parts) in enumerate(rows):
        top, left, drawn = 6 + _STEP * place, _LEFT, ""
        colour = look_of(method, methods).colour
        for number, (length, _) in enumerate(parts, start=1):
            light = "" if number == len(parts) else ' fill-opacity=".4"'
            drawn += (
                f'<rect x="{left:.2f}" y="{top + 2:g}" width="{length * scale:.2f}" height="{_STEP - 5:g}" '
                f'fill="{colour}"{light}/>'
            )
            left += length * scale
        total = f"{sum(length for length, _ in parts):.{digits}f}"
        drawn += f'<text x="{left + 4:.2f}" y="{top + 11:g}">{total}</text>'
        drawn += f'<text x="{_LEFT - 6:g}" y="{top + 11:g}" text-anchor="end">{escape(method)}</text>'
        of = ", ".join(f"{what} {length:.{digits}f}" for length, what in parts)
        inside.append(titled(f"{method}: {of}", drawn, method))
        said.append(f"{method} {total}")
    inside.append(f'<text x="{(_LEFT + _RIGHT) / 2:g}" y="{bottom + 29:g}" text-anchor="middle">{escape(label)}</text>')
    return Picture(Box(_WIDTH, bottom + 36), f"{label}: {', '.join(said)}.", "".join(inside))
