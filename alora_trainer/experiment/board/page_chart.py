"""A board's curves as SVG in the page: general text's loss against what was learned, a curve a row, with bars over seeds.

What is drawn here is there without JavaScript; every point carries all of its figures, by which `page_script` moves it.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from alora_trainer.experiment.board.board_json import number_in
from alora_trainer.experiment.board.measures import MEASURES
from alora_trainer.experiment.report.style import Look, look

WIDTH, HEIGHT = 400, 330
BOX = {"left": 52, "right": 390, "top": 12, "bottom": 282, "width": WIDTH}
# What can be chosen for each axis, the first of them drawn at first.
X_AXES = ("rise", "rise_recorded", "rise_other", "kl", "top_changed", "lost_adjusted")
Y_AXES = ("learned", "accuracy", "choices", "won_adjusted")
# matplotlib's markers, as paths about the origin.
_SHAPES = {
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


@dataclass(frozen=True)
class Mark:
    """One point of a chart.

    Attributes:
        row: whose.
        label: its settings.
        values: measure -> mean and standard deviation over seeds (None with one).
        curve: whether it is on its row's curve.
    """

    row: str
    label: str
    values: Mapping[str, tuple[float, float | None]]
    curve: bool = True


def marks_of(result: Mapping[str, Any], published: Sequence[Mapping[str, Any]]) -> list[Mark]:
    """The points of one model and task: the untouched model, the finals, and what others published."""
    base = {"learned": 0.0, **dict.fromkeys(("rise", "rise_recorded", "rise_other", "kl", "top_changed"), 0.0)}
    base |= {"lost_adjusted": 0.0, "won_adjusted": 0.0}
    for name in ("accuracy", "choices"):
        value = number_in(result["base"], name)
        if value is not None:
            base[name] = value
    marks = [Mark("base", "the untouched model", {name: (value, None) for name, value in base.items()}, curve=False)]
    for final in result["finals"]:
        values = {}
        for name in MEASURES:
            each = [number_in(figures, name) for figures in final["seeds"].values()]
            found = [value for value in each if value is not None]
            if found and len(found) == len(each):
                values[name] = (statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None)
        marks.append(Mark(final["row"], final["trial"], values))
    for one in published:
        if one.get("task") == result["task"]:
            for point in one["points"]:
                values = {name: (value, None) for name in MEASURES if (value := number_in(point, name)) is not None}
                marks.append(Mark(PUBLISHED_ROW, f"{point['label']} ({one['name']})", values, curve=False))
    return marks


def chart(marks: Sequence[Mark], result: Mapping[str, Any], rows: Sequence[str], y: str) -> str:
    """A figure with the curves.

    Args:
        marks: from `marks_of`.
        result: of the model and task.
        rows: all rows of the page, for their colours.
        y: the measure that stands on the vertical axis at first.
    """
    x = X_AXES[0]
    shown = [mark for mark in marks if x in mark.values and y in mark.values]
    across = _extent([mark.values[x][0] for mark in shown])
    down = y != "learned" and MEASURES[y].less_is_better
    along = _extent([mark.values[y][0] for mark in shown])
    upwards = (BOX["top"], BOX["bottom"]) if down else (BOX["bottom"], BOX["top"])

    def place(mark: Mark) -> tuple[float, float]:
        return (
            _place(mark.values[x][0], across, (BOX["left"], BOX["right"])),
            _place(mark.values[y][0], along, upwards),
        )

    def bars(mark: Mark) -> tuple[float, float]:
        wide = (mark.values[x][1] or 0.0) / (across[1] - across[0]) * (BOX["right"] - BOX["left"])
        return wide, (mark.values[y][1] or 0.0) / (along[1] - along[0]) * (BOX["bottom"] - BOX["top"])

    parts = list(_shares(result))
    for row in dict.fromkeys(mark.row for mark in marks if mark.curve):
        own = [mark for mark in shown if mark.row == row and mark.curve]
        points = " ".join(f"{left:.2f},{top:.2f}" for left, top in map(place, own))
        parts.append(
            f'<polyline class="curve row" data-row="{escape(row)}" points="{points}" fill="none" '
            f'stroke="{look(row, rows).colour}" stroke-width="1.6"/>'
        )
    for mark in marks:
        where = (*place(mark), *bars(mark)) if mark in shown else None
        parts.append(_point(mark, where, rows, result))
    text = alt_text(marks, result, x, y)
    options = [_options(name, axes, marks, first) for name, axes, first in (("x", X_AXES, x), ("y", Y_AXES, y))]
    return (
        f'<figure class="chart"><div class="tools" hidden>{"".join(options)}<span><button type="button" class="in">+</button> '
        '<button type="button" class="out">&minus;</button> <button type="button" class="all">all</button></span></div>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(text)}"><title>{escape(text)}</title>'
        f'<g class="axes">{_axes(across, along, upwards, x, y)}</g>{"".join(parts)}'
        f'<text class="x" x="{(BOX["left"] + BOX["right"]) / 2}" y="{HEIGHT - 12}" text-anchor="middle">'
        f'{escape(MEASURES[x].label)}</text><text class="y" transform="translate(12 {(BOX["top"] + BOX["bottom"]) / 2}) '
        f'rotate(-90)" text-anchor="middle">{escape(MEASURES[y].label)}</text></svg>'
        '<div class="tip" role="status" hidden></div>'
        "<figcaption>Each point is a training with settings that were chosen on validation, measured on test items: mean "
        "over seeds, bars of one standard deviation. To the left and up is better. Zoom by the buttons, a double click, or the "
        "wheel with shift; drag to move.</figcaption></figure>"
    )


def alt_text(marks: Sequence[Mark], result: Mapping[str, Any], x: str, y: str) -> str:
    """The chart in words, for who does not see it: of every row where its curve begins and ends."""
    sentences = [f"{result['model']} on {result['task']}: {MEASURES[y].label} against {MEASURES[x].label}."]
    for row in dict.fromkeys(mark.row for mark in marks if mark.curve):
        own = [mark for mark in marks if mark.row == row and x in mark.values and y in mark.values]
        ends = [
            f"{shown_value(y, mark.values[y][0])} at {shown_value(x, mark.values[x][0])}"
            for mark in (own[:1] + own[-1:])
        ]
        sentences.append(f"{row}: {' to '.join(dict.fromkeys(ends))}.")
    return " ".join(sentences)


def swatch(row: str, rows: Sequence[str]) -> str:
    """A row's marker alone, for lists."""
    return f'<svg class="swatch" viewBox="-7 -7 14 14" aria-hidden="true"><g class="row">{_shape(_look(row, rows))}</g></svg>'


def shown_value(measure: str, value: float | None, sd: float | None = None) -> str:
    """A figure as people read it, in the unit of its label."""
    if value is None:
        return ""
    kind = MEASURES[measure]
    text = f"{kind.factor * value:.{kind.digits}f}"
    return text if sd is None else f"{text} ± {kind.factor * sd:.{kind.digits}f}"


def _look(row: str, rows: Sequence[str]) -> Look:
    return Look("#8a8a8a", "o", hollow=True) if row == PUBLISHED_ROW else look(row, rows)


def _shape(style: Look) -> str:
    path = _SHAPES[style.marker]
    return f'<path d="{path}" fill="{"none" if style.hollow else style.colour}" stroke="{style.colour}" stroke-width="1.3"/>'


def _point(mark: Mark, where: tuple[float, ...] | None, rows: Sequence[str], result: Mapping[str, Any]) -> str:
    style = _look(mark.row, rows)
    lines = [f"{mark.row}: {mark.label}" if mark.row != PUBLISHED_ROW else mark.label, str(result["model"])]
    lines += [f"{MEASURES[name].label}: {shown_value(name, *pair)}" for name, pair in mark.values.items()]
    values = escape(json.dumps({name: list(pair) for name, pair in mark.values.items()}))
    hidden = "" if where else ' style="display:none"'
    left, top, wide, high = where or (0.0, 0.0, 0.0, 0.0)
    return (
        f'<g class="point row" tabindex="0" role="img" data-row="{escape(mark.row)}" '
        f'data-curve="{"1" if mark.curve else ""}" data-values="{values}" transform="translate({left:.2f} {top:.2f})"{hidden}>'
        f"<title>{escape(chr(10).join(lines))}</title>"
        f'<path class="bar" d="M{-wide:.2f} 0H{wide:.2f}" stroke="{style.colour}"/>'
        f'<path class="bar" d="M0 {-high:.2f}V{high:.2f}" stroke="{style.colour}"/>{_shape(style)}</g>'
    )


def _shares(result: Mapping[str, Any]) -> Iterator[str]:
    """Lines at the amounts of learning at which rows are compared."""
    gain = number_in(result["reference"], "learned", "mean")
    names = {name for row in result["rows"] for name in row["equal"]}
    for name in sorted(names):
        percent = name.rpartition("_")[2]
        if gain is not None and percent.replace(".", "", 1).isdigit():
            words = f"{percent} % of what {result['reference'].get('row')} learned"
            yield f'<path class="share" data-value="{gain * float(percent) / 100}" d=""><title>{escape(words)}</title></path>'


def _options(name: str, axes: Sequence[str], marks: Sequence[Mark], first: str) -> str:
    there = [axis for axis in axes if any(axis in mark.values for mark in marks if mark.row != "base") or axis == first]
    options = "".join(
        f'<option value="{axis}"{" selected" if axis == first else ""}>{escape(MEASURES[axis].label)}</option>'
        for axis in there
    )
    which = "across" if name == "x" else "up"
    return f'<label>{which} <select name="{name}">{options}</select></label>'


def _axes(across: tuple[float, float], along: tuple[float, float], upwards: tuple[float, float], x: str, y: str) -> str:
    left, right, top, bottom = (BOX[key] for key in ("left", "right", "top", "bottom"))
    parts = []
    for value in ticks(across[0] * MEASURES[x].factor, across[1] * MEASURES[x].factor):
        at = _place(value / MEASURES[x].factor, across, (left, right))
        parts.append(f'<path class="grid" d="M{at:.2f} {top}V{bottom}"/>')
        parts.append(f'<text class="quiet" x="{at:.2f}" y="{bottom + 14}" text-anchor="middle">{value:g}</text>')
    for value in ticks(along[0] * MEASURES[y].factor, along[1] * MEASURES[y].factor):
        at = _place(value / MEASURES[y].factor, along, upwards)
        parts.append(f'<path class="grid" d="M{left} {at:.2f}H{right}"/>')
        parts.append(f'<text class="quiet" x="{left - 5}" y="{at + 3.5:.2f}" text-anchor="end">{value:g}</text>')
    return "".join(parts) + f'<path class="axis" fill="none" d="M{left} {top}V{bottom}H{right}"/>'


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between two others, about five of them: steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [float(f"{k * step:.12g}") for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _extent(values: Sequence[float]) -> tuple[float, float]:
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    pad = ((high - low) or abs(high) or 1.0) * 0.07
    return low - pad, high + pad


def _place(value: float, domain: tuple[float, float], box: tuple[float, float]) -> float:
    return box[0] + (value - domain[0]) / (domain[1] - domain[0]) * (box[1] - box[0])
