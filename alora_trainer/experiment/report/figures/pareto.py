"""What every method gives up and what it gains: general loss against domain accuracy, a curve a method over lambda."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alora_trainer.experiment.report.gather import Comparison
from alora_trainer.experiment.report.style import dress, legend, look, new_figure
from alora_trainer.experiment.report.variant_rows import summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "pareto"
TITLE = "Forgetting against learning"
CAPTION = (
    "Rise of general token perplexity over the base model (to the left is better) against accuracy on the domain (up is "
    "better), or the loss a token of free answers (upside down). Mean over seeds; bars are one sample standard "
    "deviation over seeds. Variants of one method are joined in the order of the setting that was varied, whose values stand "
    "beside the points."
)


def numbers(comparison: Comparison) -> dict[str, Any] | None:
    """Rise of general perplexity and accuracy (both in per cent) or the loss of free answers, a point a variant."""
    points, measure = [], "free_loss" if comparison.is_free else "accuracy"
    learned = comparison.answer_losses if comparison.is_free else comparison.accuracies
    for variant in comparison.variants:
        rise = summary(list(comparison.rises(variant).values()))
        found = summary(list(learned(variant).values()))
        if rise is not None and found is not None:
            points.append({"method": variant.method, "varied": variant.varied, "rise": rise, measure: found})
    if not points:
        return None
    told = {"measure": measure} if measure != "accuracy" else {}
    return {"methods": comparison.methods, "task": comparison.task, "points": points} | told


def draw(data: dict[str, Any]) -> Figure:
    """Points with bars over seeds, those of one method joined."""
    figure = new_figure(8.2, 4.8)
    axes = figure.add_subplot()
    measure = data.get("measure", "accuracy")
    for method in data["methods"]:
        style = look(method, data["methods"])
        points = [point for point in data["points"] if point["method"] == method]
        if not points:
            continue
        axes.errorbar(
            [point["rise"]["mean"] for point in points],
            [point[measure]["mean"] for point in points],
            xerr=[point["rise"]["sd"] or 0 for point in points],
            yerr=[point[measure]["sd"] or 0 for point in points],
            color=style.colour,
            marker=style.marker,
            markerfacecolor=style.face,
            markersize=10 if style.marker == "*" else 7,
            linewidth=1.6,
            elinewidth=1,
            capsize=2.5,
            label=method,
        )
        for point in points if len(points) > 1 else ():
            axes.annotate(
                point["varied"].partition(",")[0].rpartition("=")[2],
                (point["rise"]["mean"], point[measure]["mean"]),
                xytext=(6, -11),
                textcoords="offset points",
                fontsize=8,
                color=style.colour,
            )
    learned = "accuracy (%)" if measure == "accuracy" else "answer loss (nats a token)"
    dress(axes, x="rise of general perplexity over the base model (%)", y=f"{data['task']} {learned}")
    if measure != "accuracy":
        axes.invert_yaxis()
    axes.margins(0.08)
    axes.text(0.075, 0.905, "better", transform=axes.transAxes, ha="left", va="center", fontsize=9, color="#555555")
    axes.annotate(
        "",
        xy=(0.0, 1.0),
        xytext=(0.07, 0.91),
        xycoords="axes fraction",
        arrowprops={"arrowstyle": "->", "color": "#999999"},
    )
    legend(figure, axes)
    return figure
