"""How far the training on the domain moved the weights of each layer."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Any

from alora_trainer.artefact.heatmap import arrange
from alora_trainer.experiment.report.gather import Comparison
from alora_trainer.experiment.report.style import dress, legend, look, new_figure, strokes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "drift"
TITLE = "Drift by layer"
CAPTION = (
    "Frobenius norm of what the training on the domain changed in the adapted weights of each layer (root of the sum of "
    "squares over the layer's weights), from where that training began; mean over seeds. The JSON file has every weight."
)


def numbers(comparison: Comparison) -> dict[str, Any] | None:
    """Frobenius norm of each weight's movement, by variant: means over seeds."""
    curves = []
    for variant in comparison.variants:
        found = [one.train.drift for one in variant.entries.values() if one.train is not None and one.train.drift]
        if found:
            names = [name for name in found[0] if all(name in one for one in found)]
            weights = {name: statistics.fmean(one[name] for one in found) for name in names}
            curves.append({"method": variant.method, "label": variant.label, "weights": weights})
    return {"methods": comparison.methods, "curves": curves} if curves else None


def draw(data: dict[str, Any]) -> Figure:
    """A curve over layers for every variant."""
    figure = new_figure(8.2, 4.2)
    axes = figure.add_subplot()
    counts = {method: sum(curve["method"] == method for curve in data["curves"]) for method in data["methods"]}
    drawn: dict[str, int] = {}
    layers: list[int] = []
    for curve in data["curves"]:
        method = curve["method"]
        number = drawn[method] = drawn.get(method, -1) + 1
        _, layers, cells = arrange(curve["weights"])
        sums = [
            math.sqrt(sum(math.exp(2 * row[column]) for row in cells if math.isfinite(row[column])))
            for column in range(len(layers))
        ]
        stroke = strokes(look(method, data["methods"]), number, counts[method])
        axes.plot(layers, sums, label=curve["label"], **stroke)
    axes.set_xticks(layers if len(layers) <= 16 else layers[:: max(1, len(layers) // 16)])
    axes.set_ylim(bottom=0)
    dress(axes, x="layer", y=r"$\|W - W_{start}\|_F$")
    legend(figure, axes)
    return figure
