"""What every method takes: seconds and memory (the paper's figure 5)."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from alora_trainer.experiment.report.gather import BASE, Comparison
from alora_trainer.experiment.report.style import dress, look, new_figure
from alora_trainer.experiment.report.variant_rows import seconds_before

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "cost"
TITLE = "Cost"
CAPTION = (
    "Wall-clock seconds of the training on the domain (full) and of what comes before it, such as the recording (light), and "
    "peak memory of the training on the domain: what PyTorch allocated on a GPU, the whole process on a CPU. Mean over seeds "
    "and over a method's variants. The recording can be shared between many domains."
)


def numbers(comparison: Comparison) -> dict[str, Any] | None:
    """Seconds of the training and of what comes before it, and peak bytes, by method: means over seeds and variants."""
    rows = []
    for method in comparison.methods:
        results = [result for variant in comparison.of(method) for result in variant.entries.values()]
        trained = [(result, result.train) for result in results if result.train is not None and result.train.seconds]
        if method != BASE and trained:
            rows.append(
                {
                    "method": method,
                    "seconds": statistics.fmean(cost.seconds or 0 for _, cost in trained),
                    "seconds_before": statistics.fmean(seconds_before(result) for result, _ in trained),
                    "peak_bytes": statistics.fmean(cost.peak_bytes or 0 for _, cost in trained),
                }
            )
    return {"methods": comparison.methods, "rows": rows} if rows else None


def draw(data: dict[str, Any]) -> Figure:
    """Bars of seconds at the left, of memory at the right, a row a method."""
    rows = data["rows"]
    figure = new_figure(10.2, 1.3 + 0.34 * len(rows))
    left, right = figure.subplots(1, 2, sharey=True)
    for place, row in enumerate(rows):
        colour = look(row["method"], data["methods"]).colour
        left.barh(place, row["seconds_before"], color=colour, alpha=0.4, height=0.65)
        left.barh(place, row["seconds"], left=row["seconds_before"], color=colour, height=0.65)
        total = row["seconds"] + row["seconds_before"]
        left.annotate(
            f"{total:.0f}", (total, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8
        )
        memory = row["peak_bytes"] / 2**30
        right.barh(place, memory, color=colour, height=0.65)
        right.annotate(
            f"{memory:.2f}", (memory, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8
        )
    left.set_yticks(range(len(rows)), [row["method"] for row in rows])
    left.set_ylim(len(rows) - 0.5, -0.5)
    dress(left, x="wall-clock time (s)", y="")
    dress(right, x="peak memory (GiB)", y="")
    for axes in (left, right):
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.12)
    return figure
