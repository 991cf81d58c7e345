"""A whole page around what is drawn: its look, its script, and the boxes that choose what is shown."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from alora_trainer.experiment.report.drawing.chart import LABEL_GAP, Axis, Chart
from alora_trainer.experiment.report.drawing.marks import swatch
from alora_trainer.experiment.report.drawing.page_script import ARITHMETIC, BEHAVIOUR
from alora_trainer.experiment.report.drawing.page_style import HEAD_SCRIPT, STYLE


def whole_page(title: str, body: str, axes: Mapping[str, Axis]) -> str:
    """One HTML file that needs nothing beside it and no network.

    Args:
        title: of the page, as text.
        body: what stands in it, as HTML.
        axes: all figures of all charts in it, by name.
    """
    data = {"gap": LABEL_GAP, "measures": {name: dataclasses.asdict(axis) for name, axis in axes.items()}}
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<script>{HEAD_SCRIPT}</script>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n{body}</main>\n"
        f'<script type="application/json" id="data">{embedded(data)}</script>\n<script>{ARITHMETIC}{BEHAVIOUR}</script>\n'
        "</body>\n</html>\n"
    )


def filters(shown: Sequence[str], rows: Sequence[str], texts: Mapping[str, str]) -> str:
    """A box for each of the rows that are shown, and two buttons for all of them.

    Args:
        shown: rows that anything was drawn of.
        rows: all rows of the page, for their colours.
        texts: what each is, for who points at it.
    """
    boxes = "".join(
        f'<label title="{escape(texts.get(row, row))}"><input type="checkbox" data-row="{escape(row)}" checked> '
        f"{swatch(row, rows)} {escape(row)}</label>"
        for row in shown
    )
    every = (
        '<span><button type="button" class="every" data-on="1">all</button> '
        '<button type="button" class="every" data-on="0">none</button></span>'
    )
    return f'<div class="methods tools">{boxes}{every}</div>\n'


def axis_tools(chart: Chart, across: Sequence[str], up: Sequence[str]) -> str:
    """What chooses a chart's axes among the figures that any of its points has, and zooms."""
    choices = []
    for name, words, figures, first in (("x", "across", across, chart.x), ("y", "up", up, chart.y)):
        there = [
            one for one in figures if one == first or any(one in mark.values for mark in chart.marks if mark.curve)
        ]
        options = "".join(
            f'<option value="{one}"{" selected" if one == first else ""}>{escape(chart.axes[one].label)}</option>'
            for one in there
        )
        choices.append(f'<label>{words} <select name="{name}">{options}</select></label>')
    return (
        f'<div class="tools">{"".join(choices)}<span><button type="button" class="in">+</button> '
        '<button type="button" class="out">&minus;</button> <button type="button" class="all">all</button></span></div>'
    )


def embedded(value: Any) -> str:
    """JSON that can stand inside of a page's script element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
