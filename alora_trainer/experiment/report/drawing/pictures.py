"""Figures that are no curves, and how any figure stands in a page or in a file of its own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Protocol

from alora_trainer.experiment.report.drawing.chart import Box, Chart
from alora_trainer.experiment.report.drawing.page_style import DRAWING


class Drawing(Protocol):
    """What can stand in a page."""

    @property
    def box(self) -> Box:
        """Of which width and height count."""

    def svg(self, attributes: str = "") -> str:
        """The drawing, well-formed on its own; `attributes` are of the outermost element."""


@dataclass(frozen=True)
class Picture:
    """A drawing that a page's script does not move; groups of class ``point`` in it tell their titles.

    Attributes:
        box: of which width and height count.
        text: what it shows, for those who do not see it.
        inside: SVG.
    """

    box: Box
    text: str
    inside: str

    def svg(self, attributes: str = "") -> str:
        """See `Drawing`."""
        text = escape(self.text)
        return (
            f'<svg {attributes}viewBox="0 0 {self.box.width:g} {self.box.height:g}" role="img" aria-label="{text}">'
            f"<title>{text}</title>{self.inside}</svg>"
        )


def in_page(drawing: Drawing, tools: str = "") -> str:
    """A figure of a page.

    Args:
        drawing: that it shows.
        tools: what chooses its axes, as HTML.
    """
    kind = "rows"
    if isinstance(drawing, Chart):
        axes = f'data-x="{escape(drawing.x)}" data-y="{escape(drawing.y)}"'
        kind = f'chart" {axes} data-box="{escape(json.dumps(dataclasses.asdict(drawing.box)))}'
    return f'<figure class="{kind}">{tools}{drawing.svg()}<div class="tip" role="status" hidden></div></figure>'


def svg_file(drawings: Sequence[Drawing]) -> str:
    """Drawings side by side as one SVG file, light or dark as its reader has it."""
    boxes = [drawing.box for drawing in drawings]
    height, width = max(box.height for box in boxes), sum(box.width for box in boxes)
    parts, left = [], 0.0
    for drawing, box in zip(drawings, boxes, strict=True):
        parts.append(drawing.svg(f'x="{left:g}" y="0" width="{box.width:g}" height="{box.height:g}" '))
        left += box.width
    ground = f'<rect width="{width:g}" height="{height:g}" style="fill:var(--ground)"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{2 * width:g}" '
        f'height="{2 * height:g}">'
        f"<style>{DRAWING}</style>{ground}{''.join(parts)}</svg>\n"
    )


def titled(text: str, inside: str, row: str = "") -> str:
    """A part that says `text` under the pointer, and that is hidden with its row."""
    kind, data = ("point row", f' data-row="{escape(row)}"') if row else ("point", "")
    return f'<g class="{kind}" tabindex="0" role="img"{data}><title>{escape(text)}</title>{inside}</g>'
