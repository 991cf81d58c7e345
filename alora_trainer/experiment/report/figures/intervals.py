"""By how much ALoRA answers more items rightly than each other method, with intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alora_trainer.experiment.report.gather import OURS, Comparison
from alora_trainer.experiment.report.significance import significance
from alora_trainer.experiment.report.style import dress, legend, look, new_figure, shade

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "intervals"
TITLE = "Accuracy of ALoRA minus that of the others"
CAPTION = (
    "Difference of accuracy over the same items (right of zero, ALoRA answers more of them rightly); lines are 95 % "
    "intervals of a paired bootstrap over items, answers averaged over seeds. They say how far the difference would hold for "
    "other items of the kind, not for other seeds (for these, see the t-tests)."
)


def numbers(comparison: Comparison) -> dict[str, Any] | None:
    """Differences of accuracy over items between ALoRA and each other method (points), with their intervals."""
    rows = [
        {"ours": row["ours"], "other": row["other"], **row["items"]}
        for row in significance(comparison)
        if row["items"] is not None
    ]
    return {"task": comparison.task, "rows": rows} if rows else None


def draw(data: dict[str, Any]) -> Figure:
    """An interval for every pair, around zero."""
    ours = list(dict.fromkeys(row["ours"] for row in data["rows"]))
    others = list(dict.fromkeys(row["other"] for row in data["rows"]))
    figure = new_figure(9.2, 1.0 + len(others) * (0.2 + 0.13 * len(ours)))
    axes = figure.add_subplot()
    axes.axvline(0, color="#8c8c8c", linewidth=1)
    for place, name in enumerate(ours):
        rows = [row for row in data["rows"] if row["ours"] == name]
        offset = 0.0 if len(ours) == 1 else 0.5 * (place / (len(ours) - 1) - 0.5)
        axes.errorbar(
            [row["difference"] for row in rows],
            [others.index(row["other"]) + offset for row in rows],
            xerr=[[row["difference"] - row["low"] for row in rows], [row["high"] - row["difference"] for row in rows]],
            linestyle="none",
            color=shade(look(OURS, []).colour, place, len(ours)),
            marker="o",
            markersize=5,
            elinewidth=2,
            label=name,
        )
    axes.set_yticks(range(len(others)), [f"over {name}" for name in others])
    axes.set_ylim(len(others) - 0.5, -0.5)
    dress(axes, x=f"difference of {data['task']} accuracy (percentage points)", y="")
    axes.tick_params(axis="y", length=0)
    legend(figure, axes)
    return figure
