"""Accuracy and forgetting over the penalty's strength lambda (the paper's figure 6)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alora_trainer.experiment.report.drawing.chart import Mark
from alora_trainer.experiment.report.drawing.pictures import Drawing
from alora_trainer.experiment.report.figures.axes import line_chart
from alora_trainer.experiment.report.gather import BASE, PLAIN, Comparison
from alora_trainer.experiment.report.method_result import SCALE
from alora_trainer.experiment.report.variant_rows import summary

NAME = "strength"
TITLE = "The penalty's strength"
CAPTION = (
    "Accuracy and rise of general perplexity over lambda (logarithmic axis); points are means over seeds, bars one sample "
    "standard deviation. Dashed lines: the base model, LoRA without a penalty, and a strength of zero."
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
    curves = {
        method: points for method, points in curves.items() if len({one["lam"] for one in points if one["lam"] > 0}) > 1
    }
    if not curves:
        return None
    return {"methods": comparison.methods, "task": comparison.task, "curves": curves, "levels": levels}


def draw(data: Mapping[str, Any]) -> list[Drawing]:
    """Accuracy at the left and rise at the right, a curve a method; methods without a strength are lines across."""
    curves = [(method, point) for method, points in data["curves"].items() for point in points]
    lams = [point["lam"] for _, point in curves if point["lam"] > 0]
    panels: list[Drawing] = []
    for measure in ("accuracy" if "accuracy" in curves[0][1] else "free_loss", "rise"):
        marks: list[Mark] = []
        for method, point in curves:
            if point[measure] is not None:
                name = method if point["lam"] > 0 else f"{method} (lam=0)"
                marks += _across(method, name, point, measure, [point["lam"]] if point["lam"] > 0 else lams)
        for level in data["levels"]:
            if level[measure] is not None:
                marks += _across(level["method"], level["method"], level, measure, lams)
        panels.append(line_chart(marks, data["methods"], "lam", measure, f"{data['task']}: "))
    return panels


def _across(method: str, name: str, point: Mapping[str, Any], measure: str, lams: Sequence[float]) -> Iterator[Mark]:
    """A point at one strength, or a line across all of them."""
    mean, sd = point[measure]["mean"], point[measure]["sd"]
    if len(lams) == 1:
        yield Mark(method, name, {"lam": (lams[0], None), measure: (mean, sd)}, name)
    else:
        for lam in (min(lams), max(lams)):
            yield Mark(method, name, {"lam": (lam, None), measure: (mean, None)}, name, level=True)
