"""How figures look: colours that colour-blind readers can tell apart, one for a method everywhere, and quiet axes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alora_trainer.experiment.report.gather import BASE, OURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito (2008), without the yellow that is hard to see on white.
_COLOURS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#332288", "#882255", "#44AA99", "#999933")
_MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">", "p")
_OURS = "#0072B2"
_BASE = "#6b6b6b"
_DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_TEXT = "#222222"
_QUIET = "#d9d9d9"


@dataclass(frozen=True)
class Look:
    """A method's colour and marker; where there are more methods than colours, those that come round again are drawn hollow."""

    colour: str
    marker: str
    hollow: bool = False

    @property
    def face(self) -> str:
        """The colour inside the marker."""
        return "white" if self.hollow else self.colour


def look(method: str, methods: Sequence[str]) -> Look:
    """How `method` is drawn where `methods` are shown together; ours and the base model look the same everywhere."""
    if method == OURS:
        return Look(_OURS, "o")
    if method == BASE:
        return Look(_BASE, "*")
    place = [name for name in methods if name not in (OURS, BASE)].index(method)
    round_, colour = divmod(place, len(_COLOURS))
    return Look(_COLOURS[colour], _MARKERS[(colour + 2 * round_) % len(_MARKERS)], hollow=round_ % 2 == 1)


def strokes(style: Look, place: int, count: int) -> dict[str, Any]:
    """How a line of the `place`-th of `count` variants of one method is drawn, as arguments of matplotlib's `plot`."""
    colour = shade(style.colour, place, count)
    return {
        "color": colour,
        "linestyle": dashes(place + (3 if style.hollow else 0)),
        "linewidth": 1.5,
        "marker": style.marker,
        "markersize": 5,
        "markerfacecolor": "white" if style.hollow else colour,
    }


def shade(colour: str, place: int, count: int) -> tuple[float, float, float]:
    """The colour of the `place`-th of `count` variants of one method, from light to full."""
    from matplotlib.colors import to_rgb

    weight = 1.0 if count == 1 else 0.35 + 0.65 * place / (count - 1)
    red, green, blue = (1 - weight * (1 - part) for part in to_rgb(colour))
    return red, green, blue


def dashes(place: int) -> Any:
    """A line style for the `place`-th of several lines in one colour."""
    return _DASHES[place % len(_DASHES)]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def dress(axes: Axes, *, x: str, y: str, title: str | None = None) -> None:
    """Labels with units, a light grid, and no box around."""
    axes.set_xlabel(x, color=_TEXT)
    axes.set_ylabel(y, color=_TEXT)
    if title is not None:
        axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold", color=_TEXT)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#8c8c8c")
    axes.tick_params(which="both", color="#8c8c8c", labelcolor=_TEXT, labelsize=9)
    axes.grid(color=_QUIET, linewidth=0.6)
    axes.set_axisbelow(True)


def legend(figure: Figure, axes: Axes) -> None:
    """One legend for the whole figure, at its right; every label once."""
    handles, labels = axes.get_legend_handles_labels()
    chosen = dict(zip(labels, handles, strict=True))
    figure.legend(chosen.values(), chosen.keys(), loc="outside right upper", frameon=False, fontsize=9)


def to_svg(figure: Figure) -> str:
    """The figure as SVG; the same figure gives the same text."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "alora", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def to_png(figure: Figure) -> bytes:
    """The figure as PNG, 150 dots an inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()
