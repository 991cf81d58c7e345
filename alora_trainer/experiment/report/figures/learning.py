"""General perplexity and domain accuracy while the domain is learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alora_trainer.experiment.report.drawing.pictures import Drawing
from alora_trainer.experiment.report.figures.axes import line_chart, line_marks
from alora_trainer.experiment.report.figures.losses import mean_columns
from alora_trainer.experiment.report.gather import Comparison

NAME = "learning"
TITLE = "Forgetting and learning while tuning"
CAPTION = (
    "General perplexity and domain accuracy measured during the training on a few blocks and items "
    "(evaluation.curve_blocks, evaluation.curve_items), so that they differ from the table's; mean over seeds."
)
MEASURES = ("general_perplexity", "domain_accuracy")


def numbers(comparison: Comparison) -> dict[str, Any] | None:
    """General perplexity and domain accuracy (per cent) by optimizer step, for every variant that measured them."""
    curves = []
    for variant in comparison.variants:
        found = mean_columns(variant, "curve", MEASURES)
        if found is not None:
            accuracy = found.get("domain_accuracy")
            found["domain_accuracy"] = None if accuracy is None else [100 * value for value in accuracy]  # type: ignore
            curves.append({"method": variant.method, "label": variant.label, **found})
    return {"methods": comparison.methods, "curves": curves} if curves else None


def draw(data: Mapping[str, Any]) -> list[Drawing]:
    """A panel a measure, a curve a variant."""
    measures = [key for key in MEASURES if any(curve.get(key) for curve in data["curves"])]
    return [line_chart(line_marks(data["curves"], "step", key), data["methods"], "step", key) for key in measures]
