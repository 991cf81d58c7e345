"""What every method gives up and what it gains: general loss against domain accuracy, a curve a method over lambda."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alora_trainer.experiment.report.drawing.chart import Box, Chart, Mark, ends_in_words
from alora_trainer.experiment.report.drawing.pictures import Drawing
from alora_trainer.experiment.report.figures.axes import AXES
from alora_trainer.experiment.report.gather import Comparison
from alora_trainer.experiment.report.variant_rows import variant_rows

NAME = "pareto"
# What can be chosen for each axis of the page's chart.
ACROSS = ("rise", "loss_rise", "kl")
UP = ("accuracy", "accuracy_norm", "free_loss", "ece")
TITLE = "Forgetting against learning"
CAPTION = (
    "Rise of general token perplexity over the base model (to the left is better) against accuracy on the domain (up is "
    "better), or the loss a token of free answers (upside down). Mean over seeds; bars are one sample standard "
    "deviation over seeds. Variants of one method are joined in the order of the setting that was varied, whose values stand "
    "beside the points."
)


def numbers(comparison: Comparison) -> dict[str, Any] | None:
    """A point a variant: what the table says of it that can stand on an axis (see `AXES`)."""
    measure = "free_loss" if comparison.is_free else "accuracy"
    points = []
    for variant, row in zip(comparison.variants, variant_rows(comparison), strict=True):
        found = {name: row[name] for name in (*ACROSS, *UP) if row[name] is not None}
        if "rise" in found and measure in found:
            points.append({"method": variant.method, "varied": variant.varied, **found})
    if not points:
        return None
    told = {"measure": measure} if measure != "accuracy" else {}
    return {"methods": comparison.methods, "task": comparison.task, "points": points} | told


def draw(data: Mapping[str, Any]) -> list[Drawing]:
    """Points with bars over seeds, those of one method joined."""
    y = data.get("measure", "accuracy")
    marks = []
    for method in data["methods"]:
        points = [point for point in data["points"] if point["method"] == method]
        for point in points:
            values = {name: (point[name]["mean"], point[name]["sd"]) for name in (*ACROSS, *UP) if point.get(name)}
            label = f"{method} ({point['varied']})" if point["varied"] else method
            note = point["varied"].partition(",")[0].rpartition("=")[2] if len(points) > 1 else ""
            marks.append(Mark(method, label, values, method, note=note))
    text = f"{data['task']}: {AXES[y].label} against {AXES['rise'].label}. {ends_in_words(marks, AXES, 'rise', y)}"
    box = Box.labelled(len({mark.curve for mark in marks}))
    return [Chart(marks, AXES, x="rise", y=y, rows=data["methods"], box=box, text=text)]
