"""Accuracy and forgetting over the penalty's strength lambda (the paper's figure 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alora_trainer.experiment.report.gather import BASE, PLAIN, Comparison
from alora_trainer.experiment.report.method_result import SCALE
from alora_trainer.experiment.report.style import dress, legend, look, new_figure
from alora_trainer.experiment.report.variant_rows import summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "strength"
TITLE = "The penalty's strength"
CAPTION = (
    "Accuracy and rise of general perplexity over lambda (logarithmic axis); points are means over seeds, bars one sample "
    "standard deviation. Dashed lines: the base model, and LoRA without a penalty."
)
LEVELS = (BASE, PLAIN, "lora_ab")


def numbers(comparison: Comparison) -> dict[str, Any] | None:
    """Accuracy and rise of perplexity (both in per cent) over lambda by method, and the levels of methods without one."""
    curves: dict[str, list[dict[str, Any]]] = {}
    levels = []
    for variant in comparison.variants:
        learned = comparison.answer_losses(variant) if comparison.is_free else comparison.accuracies(variant)
        name = "free_loss" if comparison.is_free else "accuracy"
        measured = {name: summary(list(learned.values())), "rise": summary(list(comparison.rises(variant).values()))}
        if not variant.is_whole:
            continue
        if variant.lam is not None:
            curves.setdefault(variant.method, []).append({"lam": variant.lam, **measured})
        elif variant.method in LEVELS and variant.settings.keys() <= {SCALE}:
            levels.append({"method": variant.method, **measured})
    curves = {method: points for method, points in curves.items() if len(points) > 1}
    if not curves:
        return None
    return {"methods": comparison.methods, "task": comparison.task, "curves": curves, "levels": levels}


def draw(data: dict[str, Any]) -> Figure:
    """Accuracy at the left and rise at the right, a curve a method."""
    figure = new_figure(10.2, 4.2)
    points = [point for curve in data["curves"].values() for point in curve]
    learned = ("accuracy", "accuracy (%)") if "accuracy" in points[0] else ("free_loss", "answer loss (nats a token)")
    panels = [(learned[0], f"{data['task']} {learned[1]}"), ("rise", "rise of general perplexity (%)")]
    for place, (measure, title) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, 2, place)
        for method, points in data["curves"].items():
            style = look(method, data["methods"])
            found = [point for point in points if point[measure] is not None]
            axes.errorbar(
                [point["lam"] for point in found],
                [point[measure]["mean"] for point in found],
                yerr=[point[measure]["sd"] or 0 for point in found],
                color=style.colour,
                marker=style.marker,
                markerfacecolor=style.face,
                linewidth=1.6,
                elinewidth=1,
                capsize=2.5,
                label=method,
            )
        for level in data["levels"]:
            if level[measure] is not None:
                style = look(level["method"], data["methods"])
                axes.axhline(
                    level[measure]["mean"], color=style.colour, linestyle="--", linewidth=1.2, label=level["method"]
                )
        lams = [point["lam"] for points in data["curves"].values() for point in points]
        if min(lams) > 0:
            axes.set_xscale("log")
        else:
            axes.set_xscale("symlog", linthresh=min(lam for lam in lams if lam > 0))
        dress(axes, x=r"strength $\lambda$", y=title)
    legend(figure, axes)
    return figure
