"""Differences with their intervals, a row a pair, around zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from alora_trainer.experiment.report.drawing.chart import Box
from alora_trainer.experiment.report.drawing.marks import look_of
from alora_trainer.experiment.report.drawing.pictures import Picture, titled
from alora_trainer.experiment.report.drawing.scales import extent, place, ticks

_STEP, _LEFT, _RIGHT, _WIDTH = 17.0, 150.0, 540.0, 640.0


def differences(rows: Sequence[Mapping[str, Any]], methods: Sequence[str], label: str) -> Picture:
    """A point and an interval a row.

    Args:
        rows: see `matched_accuracy`.
        methods: all methods of the page, for their colours.
        label: of the axis, with its unit.
    """
    ends = [row[key] for row in rows for key in ("low", "high", "difference") if row[key] is not None]
    domain, side = extent([0.0, *ends]), (_LEFT, _RIGHT)
    bottom = 20 + _STEP * len(rows)
    several = len({row["ours"] for row in rows}) > 1
    inside = [f'<text class="quiet" x="{_RIGHT + 8:g}" y="11">at a rise of</text>']
    for value in ticks(*domain):
        at = place(value, domain, side)
        inside.append(f'<path class="{"grid" if value else "zero"}" d="M{at:.2f} 16V{bottom:g}"/>')
        inside.append(f'<text class="quiet" x="{at:.2f}" y="{bottom + 13:g}" text-anchor="middle">{value:g}</text>')
    said = []
    for number, row in enumerate(rows):
        top = 20 + _STEP * (number + 0.5)
        colour, middle = look_of(row["method"], methods).colour, place(row["difference"], domain, side)
        name = f"{row['ours']} over {row['other']}" if several else f"over {row['other']}"
        drawn = f'<text x="{_LEFT - 6:g}" y="{top + 3.5:g}" text-anchor="end">{escape(name)}</text>'
        interval = ""
        if row["low"] is not None:
            low, high = (place(row[key], domain, side) for key in ("low", "high"))
            drawn += f'<path d="M{low:.2f} {top:g}H{high:.2f}" stroke="{colour}" stroke-width="2"/>'
            interval = f", 95 % interval {row['low']:+.1f} to {row['high']:+.1f}"
        face = "var(--ground)" if row["other_between"] else colour
        drawn += f'<circle cx="{middle:.2f}" cy="{top:g}" r="4" fill="{face}" stroke="{colour}" stroke-width="1.5"/>'
        drawn += f'<text class="quiet" x="{_RIGHT + 8:g}" y="{top + 3.5:g}">{row["at"]:+.1f} %</text>'
        text = f"{row['ours']} over {row['other']}: {row['difference']:+.1f}{interval}, at a rise of {row['at']:.1f} %"
        inside.append(titled(text, drawn, row["method"]))
        said.append(text)
    inside.append(f'<text x="{(_LEFT + _RIGHT) / 2:g}" y="{bottom + 29:g}" text-anchor="middle">{escape(label)}</text>')
    return Picture(Box(_WIDTH, bottom + 36), f"{label}. {'; '.join(said)}.", "".join(inside))
