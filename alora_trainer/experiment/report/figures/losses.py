"""Task loss, penalty and their sum over the training on the domain (the paper's figure 4)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from alora_trainer.experiment.methods.general_text import GeneralTextOptions
from alora_trainer.experiment.report.drawing.pictures import Drawing
from alora_trainer.experiment.report.figures.axes import AXES, line_chart, line_marks
from alora_trainer.experiment.report.gather import Comparison, MethodVariant

NAME = "losses"
TITLE = "Losses while tuning"
CAPTION = (
    "Task loss (cross-entropy of the answers), what is added to it (the penalty with lambda and layer weights in it, or the "
    "weighted loss on general text of replay, i_lora and kl_anchor; logarithmic axis) and their sum, which is minimised. Each "
    "point is the mean of the optimizer steps since the one before, averaged over seeds."
)
PARTS = ("task", "penalty", "total")


def numbers(comparison: Comparison) -> dict[str, Any] | None:
    """Task loss, what is added to it, and their sum by optimizer step, for every variant."""
    curves = []
    for variant in comparison.variants:
        found = mean_columns(variant, "training", ("loss", "ce_loss", "penalty", "general_loss"))
        if found is not None:
            total, penalty = found.get("loss"), found.get("penalty")
            task = found.get("ce_loss", total)
            if total is not None and penalty is None and "general_loss" in found:
                options = comparison.runs[0].recipe.get("method_options", {}).get(variant.method, {})
                weight = float(options.get("weight", GeneralTextOptions().weight))
                penalty = [weight * value for value in found["general_loss"]]
                task = [whole - added for whole, added in zip(total, penalty, strict=True)]
            curve = {"step": found["step"], "task": task, "penalty": penalty, "total": total}
            curves.append({"method": variant.method, "label": variant.label, **curve})
    return {"methods": comparison.methods, "curves": curves} if curves else None


def mean_columns(variant: MethodVariant, kind: str, keys: tuple[str, ...]) -> dict[str, list[Any]] | None:
    """A variant's log columns, averaged over the seeds that logged at the same steps; those that are missing are left out."""
    logs = [one.train.history.get(kind) for one in variant.entries.values() if one.train and one.train.history]
    kept = [log for log in logs if log]
    histories = [log for log in kept if log["step"] == kept[0]["step"]]
    if not histories:
        return None
    columns: dict[str, list[Any]] = {"step": histories[0]["step"]}
    for key in keys:
        if all(key in one and None not in one[key] for one in histories):
            columns[key] = [statistics.fmean(values) for values in zip(*(one[key] for one in histories), strict=True)]
    return columns


def draw(data: Mapping[str, Any]) -> list[Drawing]:
    """A panel for each of the three, a curve a variant."""
    panels: list[Drawing] = []
    for part in PARTS:
        marks = line_marks(data["curves"], "step", part)
        if any(AXES[part].has(mark.values, part) for mark in marks):
            panels.append(line_chart(marks, data["methods"], "step", part))
    return panels
