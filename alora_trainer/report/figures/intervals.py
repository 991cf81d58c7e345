"""By how much ALoRA answers more items rightly than each other method, with intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alora_trainer.report.gather import Comparison
from alora_trainer.report.significance import significance
from alora_trainer.report.style import dress, look, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "intervals"
TITLE = "Accuracy of ALoRA minus that of the others"
CAPTION = (
    "Difference of accuracy over the same items (right of zero, ALoRA answers more of them rightly); the line is the 95 % "
    "interval of a paired bootstrap over items, answers averaged over seeds. It says how far the difference would hold for "
    "other items of the kind, not for other seeds (for these, see the t-tests)."
)


def numbers(comparison: Comparison) -> dict[str, Any] | None:
    methods = {variant.label: variant.method for variant in comparison.variants}
    rows = [
        {"ours": row["ours"], "other": row["other"], "method": methods[row["other"]], **row["items"]}
        for row in significance(comparison)
        if row["items"] is not None
    ]
    return {"methods": comparison.methods, "task": comparison.task, "rows": rows} if rows else None


def draw(data: dict[str, Any]) -> Figure:
    rows = data["rows"]
    figure = new_figure(8.2, 1.1 + 0.26 * len(rows))
    axes = figure.add_subplot()
    axes.axvline(0, color="#8c8c8c", linewidth=1)
    for place, row in enumerate(rows):
        style = look(row["method"], data["methods"])
        axes.plot([row["low"], row["high"]], [place, place], color=style.colour, linewidth=2, solid_capstyle="round")
        axes.plot([row["difference"]], [place], color=style.colour, marker=style.marker, markersize=6)
    axes.set_yticks(range(len(rows)), [f"{row['ours']} - {row['other']}" for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    dress(axes, x=f"difference of {data['task']} accuracy (percentage points)", y="")
    axes.grid(axis="y", visible=False)
    return figure
