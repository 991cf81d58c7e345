"""A board's curves: general text's loss against what was learned, a curve a row, with bars over seeds."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from alora_trainer.experiment.board.board_json import number_in
from alora_trainer.experiment.board.measures import MEASURES
from alora_trainer.experiment.report.drawing.chart import Axis, Box, Chart, Mark, ends_in_words
from alora_trainer.experiment.report.drawing.marks import PUBLISHED_ROW
from alora_trainer.experiment.report.drawing.page import axis_tools

# What can be chosen for each axis, the first of them drawn at first.
X_AXES = ("rise", "rise_recorded", "rise_other", "kl", "top_changed", "lost_adjusted")
Y_AXES = ("learned", "accuracy", "choices", "won_adjusted")
AXES = {
    name: Axis(measure.label, measure.factor, measure.digits, downwards=measure.less_is_better)
    for name, measure in MEASURES.items()
}


def marks_of(result: Mapping[str, Any], published: Sequence[Mapping[str, Any]]) -> list[Mark]:
    """The points of one model and task: the untouched model, the finals, and what others published."""
    base = {"learned": 0.0, **dict.fromkeys(("rise", "rise_recorded", "rise_other", "kl", "top_changed"), 0.0)}
    base |= {"lost_adjusted": 0.0, "won_adjusted": 0.0}
    for name in ("accuracy", "choices"):
        value = number_in(result["base"], name)
        if value is not None:
            base[name] = value
    marks = [
        Mark(
            "base",
            f"base: the untouched model\n{result['model']}",
            {name: (value, None) for name, value in base.items()},
        )
    ]
    for final in result["finals"]:
        values = {}
        for name in MEASURES:
            each = [number_in(figures, name) for figures in final["seeds"].values()]
            found = [value for value in each if value is not None]
            if found and len(found) == len(each):
                values[name] = (statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None)
        marks.append(
            Mark(final["row"], f"{final['row']}: {final['trial']}\n{result['model']}", values, curve=final["row"])
        )
    for one in published:
        if one.get("task") == result["task"]:
            for point in one["points"]:
                values = {name: (value, None) for name in MEASURES if (value := number_in(point, name)) is not None}
                marks.append(Mark(PUBLISHED_ROW, f"{point['label']} ({one['name']})", values))
    return marks


def drawing(marks: Sequence[Mark], result: Mapping[str, Any], rows: Sequence[str], y: str, heading: str = "") -> Chart:
    """The curves of a model and task, with their names at their ends.

    Args:
        marks: from `marks_of`.
        result: of the model and task.
        rows: all rows of the page, for their colours.
        y: the measure that stands on the vertical axis at first.
        heading: a line above the curves, for a picture that stands alone.
    """
    x = X_AXES[0]
    what = f"{result['model']} on {result['task']}: {AXES[y].label} against {AXES[x].label}."
    text = f"{what} {ends_in_words(marks, AXES, x, y)}"
    box = Box.labelled(len({mark.curve for mark in marks if mark.curve}))
    above = f'<text x="{box.left:g}" y="{box.top - 2:g}">{escape(heading)}</text>' if heading else ""
    return Chart(marks, AXES, x=x, y=y, rows=rows, box=box, text=text, beneath=above + "".join(_shares(result)))


def figure(chart: Chart) -> str:
    """A figure of the page."""
    return (
        f'<figure class="chart" data-box="{escape(json.dumps(dataclasses.asdict(chart.box)))}">'
        f'{axis_tools(chart, X_AXES, Y_AXES)}{chart.svg()}<div class="tip" role="status" hidden></div>'
        "<figcaption>Each point is a training with settings that were chosen on validation, measured on test items: mean "
        "over seeds, bars of one standard deviation. To the left and up is better. Zoom by the buttons, a double click, or the "
        "wheel with shift; drag to move.</figcaption></figure>"
    )


def first_axis(result: Mapping[str, Any], published: Sequence[Mapping[str, Any]]) -> str:
    """What was learned; but accuracy, where figures of others are drawn beside, which have no more."""
    beside = any(one.get("task") == result["task"] for one in published)
    return "accuracy" if beside else "learned"


def shown_value(measure: str, value: float | None, sd: float | None = None) -> str:
    """A figure as people read it, in the unit of its label."""
    return AXES[measure].shown(value, sd)


def _shares(result: Mapping[str, Any]) -> Iterator[str]:
    """Lines at the amounts of learning at which rows are compared."""
    gain = number_in(result["reference"], "learned", "mean")
    names = {name for row in result["rows"] for name in row["equal"]}
    for name in sorted(names):
        percent = name.rpartition("_")[2]
        if gain is not None and percent.replace(".", "", 1).isdigit():
            words = f"{percent} % of what {result['reference'].get('row')} learned"
            at = gain * float(percent) / 100
            title = f"<title>{escape(words)}</title>"
            yield f'<path class="share" data-measure="learned" data-value="{at}" d="">{title}</path>'
