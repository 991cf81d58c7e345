"""General perplexity and domain accuracy while the domain is learned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alora_trainer.experiment.report.figures.losses import mean_columns
from alora_trainer.experiment.report.gather import Comparison
from alora_trainer.experiment.report.style import dress, legend, look, new_figure, strokes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "learning"
TITLE = "Forgetting and learning while tuning"
CAPTION = (
    "General perplexity and domain accuracy measured during the training on a few blocks and items "
    "(evaluation.curve_blocks, evaluation.curve_items), so that they differ from the table's; mean over seeds."
)
MEASURES = {"general_perplexity": "general perplexity", "domain_accuracy": "domain accuracy (%)"}


def numbers(comparison: Comparison) -> dict[str, Any] | None:
    """General perplexity and domain accuracy (per cent) by optimizer step, for every variant that measured them."""
    curves = []
    for variant in comparison.variants:
        found = mean_columns(variant, "curve", tuple(MEASURES))
        if found is not None:
            accuracy = found.get("domain_accuracy")
            found["domain_accuracy"] = None if accuracy is None else [100 * value for value in accuracy]  # type: ignore
            curves.append({"method": variant.method, "label": variant.label, **found})
    return {"methods": comparison.methods, "curves": curves} if curves else None


def draw(data: dict[str, Any]) -> Figure:
    """A panel a measure, a curve a variant."""
    measures = [key for key in MEASURES if any(curve.get(key) for curve in data["curves"])]
    figure = new_figure(10.2, 3.9)
    counts = {method: sum(curve["method"] == method for curve in data["curves"]) for method in data["methods"]}
    for place, measure in enumerate(measures, start=1):
        axes = figure.add_subplot(1, len(measures), place)
        drawn: dict[str, int] = {}
        for curve in data["curves"]:
            method = curve["method"]
            number = drawn[method] = drawn.get(method, -1) + 1
            if curve.get(measure):
                stroke = strokes(look(method, data["methods"]), number, counts[method])
                axes.plot(curve["step"], curve[measure], label=curve["label"], **stroke)
        dress(axes, x="optimizer step", y=MEASURES[measure])
    legend(figure, axes)
    return figure
