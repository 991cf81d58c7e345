"""Points and curves as SVG, a curve a method or a variant of one, with bars over seeds and the curves' names at their ends.

What is drawn here is there without JavaScript; every point carries its figures, by which `page_script` moves it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from alora_trainer.experiment.report.drawing.marks import look_of, shape
from alora_trainer.experiment.report.drawing.scales import Span, extent, log_ticks, place, spread, ticks

LABEL_GAP = 12.0  # between the names of two curves
_LABEL_LENGTH = 21  # characters
_DASHES = ("", "7 3", "7 3 2 3", "2 3", "7 2 2 2 2 2")


@dataclass(frozen=True)
class Axis:
    """A figure that can stand on an axis.

    Attributes:
        label: for people, with its unit.
        factor: what it is shown multiplied by.
        digits: behind the point, as it is shown.
        downwards: whether less is drawn further up, since less is better.
        log: whether the axis is logarithmic; what is not above zero is not drawn on it.
    """

    label: str
    factor: float = 1.0
    digits: int = 4
    downwards: bool = False
    log: bool = False

    def shown(self, value: float | None, sd: float | None = None) -> str:
        """A figure as people read it, in the unit of the label."""
        if value is None:
            return ""
        text = f"{self.factor * value:.{self.digits}f}"
        return text if sd is None else f"{text} ± {self.factor * sd:.{self.digits}f}"

    def has(self, values: Mapping[str, Any], name: str) -> bool:
        """Whether the figure `name` in `values` can be drawn on this axis."""
        return name in values and (not self.log or values[name][0] > 0)

    def at(self, value: float) -> float:
        """Where a figure lies on the axis, in its own measure: the exponent of ten of a logarithmic one."""
        return math.log10(value) if self.log else value


@dataclass(frozen=True)
class Mark:
    """One point of a chart.

    Attributes:
        row: whose: the method, or the board's row.
        label: its settings.
        values: figure -> mean and standard deviation over seeds (None with one).
        curve: the name of the curve that it is on; none where that is empty.
        number, count: which of how many curves of its row this is, by which they differ in shade and dashes.
        note: what stands beside it.
        small: a marker of a long curve, which cannot be reached by the keyboard.
        level: an end of a straight line across, without a marker.
    """

    row: str
    label: str
    values: Mapping[str, tuple[float, float | None]]
    curve: str = ""
    number: int = 0
    count: int = 1
    note: str = ""
    small: bool = False
    level: bool = False


@dataclass(frozen=True)
class Box:
    """Where a chart's axes are, in its own units.

    Attributes:
        width, height: of the whole.
        left, right, top, bottom: of what is between the axes.
        labels: where the names of curves begin; None without names.
    """

    width: float = 400
    height: float = 330
    left: float = 52
    right: float = 390
    top: float = 12
    bottom: float = 282
    labels: float | None = None

    @classmethod
    def labelled(cls, curves: int) -> Box:
        """One with room for the names of so many curves at its right."""
        height = max(330.0, LABEL_GAP * curves + 62)
        return cls(460, height, 52, 312, 12, height - 48, 322)


class Chart:
    """A drawing of marks.

    Args:
        marks: to be drawn.
        axes: what figures there are, by name.
        x, y: the figures on the axes at first.
        rows: all rows of the page, for their colours.
        box: see `Box`.
        text: what it shows, for those who do not see it.
        beneath: SVG under the curves.
    """

    def __init__(
        self,
        marks: Sequence[Mark],
        axes: Mapping[str, Axis],
        *,
        x: str,
        y: str,
        rows: Sequence[str],
        box: Box,
        text: str,
        beneath: str = "",
    ) -> None:
        self.marks, self.axes, self.x, self.y, self.rows, self.box = marks, axes, x, y, rows, box
        self.text, self.beneath = text, beneath
        across, along = axes[x], axes[y]
        self.shown = [mark for mark in marks if across.has(mark.values, x) and along.has(mark.values, y)]
        self._domains = (
            extent([value for mark in self.shown for value in _reach(across, mark.values[x])]),
            extent([value for mark in self.shown for value in _reach(along, mark.values[y])]),
        )
        up = (box.top, box.bottom) if along.downwards else (box.bottom, box.top)
        self._sides: tuple[Span, Span] = ((box.left, box.right), up)

    def svg(self, attributes: str = "") -> str:
        """The drawing, well-formed on its own; `attributes` are of the outermost element."""
        box, text = self.box, escape(self.text)
        parts = [*self._curves(), *self._labels(), *(self._point(mark) for mark in self.marks)]
        return (
            f'<svg {attributes}viewBox="0 0 {box.width:g} {box.height:g}" role="img" aria-label="{text}"><title>{text}</title>'
            f'<g class="axes">{"".join(self._axes())}</g>{self.beneath}{"".join(parts)}'
            f'<text class="x" x="{(box.left + box.right) / 2:g}" y="{box.height - 12:g}" text-anchor="middle">'
            f'{escape(self.axes[self.x].label)}</text><text class="y" transform="translate(12 '
            f'{(box.top + box.bottom) / 2:g}) rotate(-90)" text-anchor="middle">{escape(self.axes[self.y].label)}</text></svg>'
        )

    def _where(self, mark: Mark) -> tuple[float, float]:
        along, up = (
            place(self.axes[name].at(mark.values[name][0]), domain, side)
            for name, domain, side in zip((self.x, self.y), self._domains, self._sides, strict=True)
        )
        return along, up

    def _bar(self, mark: Mark, axis: int) -> tuple[float, float]:
        """A bar of one standard deviation to both sides, from the mark: two distances."""
        name = (self.x, self.y)[axis]
        value, sd = mark.values[name]
        kind, domain, side = self.axes[name], self._domains[axis], self._sides[axis]
        middle = place(kind.at(value), domain, side)
        ends = [value - (sd or 0.0), value + (sd or 0.0)]
        low, high = (middle if kind.log and end <= 0 else place(kind.at(end), domain, side) for end in ends)
        return low - middle, high - middle

    def _own(self) -> dict[str, list[Mark]]:
        """The marks that are shown, by curve."""
        names = dict.fromkeys(mark.curve for mark in self.marks if mark.curve)
        return {name: [mark for mark in self.shown if mark.curve == name] for name in names}

    def _curves(self) -> Iterator[str]:
        first = {mark.curve: mark for mark in reversed(self.marks)}
        for name, own in self._own().items():
            mark = first[name]
            points = " ".join(f"{left:.2f},{top:.2f}" for left, top in map(self._where, own))
            yield (
                f'<polyline class="curve row" data-row="{escape(mark.row)}" data-curve="{escape(name)}" points="{points}" '
                f'fill="none" stroke="{look_of(mark.row, self.rows).colour}" stroke-width="1.6"{_stroke(mark)}/>'
            )

    def _labels(self) -> Iterator[str]:
        """The curves' names at the right, each with a line from the curve's end."""
        box = self.box
        if box.labels is None:
            return
        curves = self._own()
        ends = {name: max(map(self._where, own)) if own else (box.right, box.bottom) for name, own in curves.items()}
        there = [name for name, own in curves.items() if own]
        heights = spread([ends[name][1] for name in there], LABEL_GAP, box.top, box.bottom + 14)
        at = dict(zip(there, heights, strict=True))
        for mark in {mark.curve: mark for mark in reversed(self.marks) if mark.curve}.values():
            style, name = look_of(mark.row, self.rows), mark.curve
            hidden = "" if name in at else ' style="display:none"'
            height, (left, top) = at.get(name, 0.0), ends[name]
            short = name if len(name) <= _LABEL_LENGTH else f"{name[: _LABEL_LENGTH - 1]}…"
            yield (
                f'<g class="label row" data-row="{escape(mark.row)}" data-curve="{escape(name)}"{hidden}>'
                f'<path class="leader" d="{leader(left, top, box.labels, height)}" stroke="{style.colour}"/>'
                f'<g class="name" transform="translate({box.labels + 5:g} {height:.2f})">{shape(style)}'
                f'<text x="8" y="3.5">{escape(short)}<title>{escape(name)}</title></text></g></g>'
            )

    def _point(self, mark: Mark) -> str:
        style = look_of(mark.row, self.rows)
        is_shown = mark in self.shown
        left, top = self._where(mark) if is_shown else (0.0, 0.0)
        (west, east), (low, high) = (self._bar(mark, 0), self._bar(mark, 1)) if is_shown else ((0, 0), (0, 0))
        title = "\n".join(
            [
                mark.label,
                *(f"{self.axes[name].label}: {self.axes[name].shown(*pair)}" for name, pair in mark.values.items()),
            ]
        )
        values = escape(json.dumps({name: list(pair) for name, pair in mark.values.items()}))
        drawn = "" if mark.level else shape(style)
        if mark.small and drawn:
            drawn = f'<g transform="scale(.6)"{_stroke(mark)}>{drawn}</g>'
        note = f'<text class="quiet" x="6" y="11">{escape(mark.note)}</text>' if mark.note else ""
        reached = "" if mark.small or mark.level else ' tabindex="0"'
        hidden = "" if is_shown else ' style="display:none"'
        return (
            f'<g class="point row"{reached} role="img" data-row="{escape(mark.row)}" data-curve="{escape(mark.curve)}" '
            f'data-values="{values}" transform="translate({left:.2f} {top:.2f})"{hidden}><title>{escape(title)}</title>'
            f'<path class="bar" d="M{west:.2f} 0H{east:.2f}" stroke="{style.colour}"/>'
            f'<path class="bar" d="M0 {low:.2f}V{high:.2f}" stroke="{style.colour}"/>{drawn}{note}</g>'
        )

    def _axes(self) -> Iterator[str]:
        left, right, top, bottom = self.box.left, self.box.right, self.box.top, self.box.bottom
        for value, at in _marked(self.axes[self.x], self._domains[0], self._sides[0]):
            yield f'<path class="grid" d="M{at:.2f} {top:g}V{bottom:g}"/>'
            yield f'<text class="quiet" x="{at:.2f}" y="{bottom + 14:g}" text-anchor="middle">{value:g}</text>'
        for value, at in _marked(self.axes[self.y], self._domains[1], self._sides[1]):
            yield f'<path class="grid" d="M{left:g} {at:.2f}H{right:g}"/>'
            yield f'<text class="quiet" x="{left - 5:g}" y="{at + 3.5:.2f}" text-anchor="end">{value:g}</text>'
        yield f'<path class="axis" fill="none" d="M{left:g} {top:g}V{bottom:g}H{right:g}"/>'


def leader(left: float, top: float, labels: float, height: float) -> str:
    """The line from a curve's end to its name."""
    return f"M{left + 6:.2f} {top:.2f}L{labels - 8:.2f} {height:.2f}H{labels - 3:.2f}"


def ends_in_words(marks: Sequence[Mark], axes: Mapping[str, Axis], x: str, y: str) -> str:
    """A chart for those who do not see it: of every curve where it begins and ends."""
    sentences = []
    for name in dict.fromkeys(mark.curve for mark in marks if mark.curve):
        own = [mark for mark in marks if mark.curve == name and x in mark.values and y in mark.values]
        ends = [
            f"{axes[y].shown(mark.values[y][0])} at {axes[x].shown(mark.values[x][0])}" for mark in own[:1] + own[-1:]
        ]
        if ends:
            sentences.append(f"{name}: {' to '.join(dict.fromkeys(ends))}.")
    return " ".join(sentences)


def _reach(axis: Axis, pair: tuple[float, float | None]) -> tuple[float, float]:
    """The ends of a figure's bar on the axis."""
    value, sd = pair[0], pair[1] or 0.0
    low = value if axis.log and value <= sd else value - sd
    return axis.at(low), axis.at(value + sd)


def _marked(axis: Axis, domain: Span, side: Span) -> Iterator[tuple[float, float]]:
    """Round numbers of an axis, as they are shown, and where they lie."""
    if axis.log:
        shift = math.log10(axis.factor)
        for value in log_ticks(domain[0] + shift, domain[1] + shift):
            yield value, place(math.log10(value) - shift, domain, side)
    else:
        for value in ticks(domain[0] * axis.factor, domain[1] * axis.factor):
            yield value, place(value / axis.factor, domain, side)


def _stroke(mark: Mark) -> str:
    """Shade and dashes of one of several curves of a row, from light to full; levels are dashed."""
    weight = 1.0 if mark.count == 1 else 0.45 + 0.55 * mark.number / (mark.count - 1)
    dashes = "4 3" if mark.level else _DASHES[mark.number % len(_DASHES)]
    return (f' stroke-opacity="{weight:.2f}"' if weight < 1 else "") + (
        f' stroke-dasharray="{dashes}"' if dashes else ""
    )
