"""A table of numbers as colours that everybody can tell apart, and that are told apart in grey."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from alora_trainer.experiment.report.drawing.chart import Box
from alora_trainer.experiment.report.drawing.pictures import Picture, titled

# Five colours of cividis (Nunez, Anderton and Renslow 2018), from low to high.
_COLOURS = ((0, 34, 78), (65, 77, 107), (124, 123, 120), (188, 175, 111), (254, 232, 56))
_LEFT, _HEIGHT, _VALUES = 118.0, 20.0, 16  # with so many columns the values stand in the cells


def heat_map(
    down: Sequence[str], across: Sequence[str], cells: Sequence[Sequence[float]], label: str, what: str
) -> Picture:
    """A cell a number; those that are not finite stay empty.

    Args:
        down, across: the names of rows and columns.
        cells: the numbers, a row each.
        label: of the columns.
        what: the numbers are.
    """
    flat = [value for row in cells for value in row if math.isfinite(value)]
    low, high = (min(flat), max(flat)) if flat else (0.0, 1.0)
    wide = max(9.0, min(40.0, 400.0 / max(1, len(across))))
    width, bottom = max(460.0, _LEFT + wide * len(across) + 10), 4 + _HEIGHT * len(down)
    inside = []
    for row, (name, values) in enumerate(zip(down, cells, strict=True)):
        top = 4 + _HEIGHT * row
        inside.append(f'<text x="{_LEFT - 6:g}" y="{top + 14:g}" text-anchor="end">{escape(name)}</text>')
        for column, value in enumerate(values):
            if math.isfinite(value):
                share = (value - low) / ((high - low) or 1.0)
                left = _LEFT + wide * column
                cell = f'<rect x="{left:.2f}" y="{top:g}" width="{wide:.2f}" height="{_HEIGHT:g}" fill="{_colour(share)}"/>'
                if len(across) <= _VALUES and wide >= 24:
                    ink = "#fff" if share < 0.5 else "#000"
                    cell += (
                        f'<text x="{left + wide / 2:.2f}" y="{top + 14:g}" text-anchor="middle" style="fill:{ink}">'
                        f"{value:.1f}</text>"
                    )
                inside.append(titled(f"{name}, {label} {across[column]}: {value:.2f}", cell))
    every = max(1, math.ceil(len(across) / 16))
    for column in range(0, len(across), every):
        at = _LEFT + wide * (column + 0.5)
        inside.append(
            f'<text class="quiet" x="{at:.2f}" y="{bottom + 13:g}" text-anchor="middle">{escape(across[column])}</text>'
        )
    middle = _LEFT + wide * len(across) / 2
    inside.append(f'<text x="{middle:.2f}" y="{bottom + 28:g}" text-anchor="middle">{escape(label)}</text>')
    inside.append(_key(low, high, what, bottom + 38))
    rows = [f"{name} {_between(values)}" for name, values in zip(down, cells, strict=True)]
    return Picture(Box(width, bottom + 54), f"{what}, by kind of weight: {'; '.join(rows)}.", "".join(inside))


def _between(values: Sequence[float]) -> str:
    finite = [value for value in values if math.isfinite(value)]
    return f"{min(finite):.1f} to {max(finite):.1f}" if finite else "nothing"


def _key(low: float, high: float, what: str, top: float) -> str:
    """Which colour is which number."""
    cells = "".join(
        f'<rect x="{_LEFT + 34 + 6 * k}" y="{top:g}" width="6.2" height="9" fill="{_colour(k / 19)}"/>'
        for k in range(20)
    )
    return (
        f'<text class="quiet" x="{_LEFT + 30:g}" y="{top + 8.5:g}" text-anchor="end">{low:.1f}</text>{cells}'
        f'<text class="quiet" x="{_LEFT + 158:g}" y="{top + 8.5:g}">{high:.1f}  {escape(what)}</text>'
    )


def _colour(share: float) -> str:
    """Between the five, linearly; `share` from 0 to 1."""
    at = min(max(share, 0.0), 1.0) * (len(_COLOURS) - 1)
    first = min(int(at), len(_COLOURS) - 2)
    mixed = [
        round(one + (other - one) * (at - first))
        for one, other in zip(_COLOURS[first], _COLOURS[first + 1], strict=True)
    ]
    return "#" + "".join(f"{part:02x}" for part in mixed)
