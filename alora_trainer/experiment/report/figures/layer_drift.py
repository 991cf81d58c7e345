"""How far the training on the domain moved the weights of each layer."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from alora_trainer.artefact.heatmap import arrange
from alora_trainer.experiment.report.drawing.pictures import Drawing
from alora_trainer.experiment.report.figures.axes import line_chart, line_marks
from alora_trainer.experiment.report.gather import Comparison

NAME = "drift"
TITLE = "Drift by layer"
CAPTION = (
    "Frobenius norm of what the training on the domain changed in the adapted weights of each layer (root of the sum of "
    "squares over the layer's weights), from where that training began; mean over seeds. The JSON file has every weight."
)


def numbers(comparison: Comparison) -> dict[str, Any] | None:
    """Frobenius norm of each weight's movement, by variant: means over seeds."""
    curves, missing = [], []
    for variant in comparison.variants:
        found = [one.train.drift for one in variant.entries.values() if one.train is not None and one.train.drift]
        if found:
            names = [name for name in found[0] if all(name in one for one in found)]
            weights = {name: statistics.fmean(one[name] for one in found) for name in names}
            curves.append({"method": variant.method, "label": variant.label, "weights": weights})
        elif variant.is_whole and any(one.train is not None and one.train.steps for one in variant.entries.values()):
            missing.append(variant.label)
    if not curves:
        return None
    note = f"Not drawn, since no adapter was trained whose movement is recorded: {', '.join(missing)}."
    return {"methods": comparison.methods, "curves": curves} | ({"note": note} if missing else {})


def draw(data: Mapping[str, Any]) -> list[Drawing]:
    """A curve over layers for every variant."""
    curves = []
    for curve in data["curves"]:
        _, layers, cells = arrange(curve["weights"])
        sums = [
            math.sqrt(sum(math.exp(2 * row[column]) for row in cells if math.isfinite(row[column])))
            for column in range(len(layers))
        ]
        curves.append({"method": curve["method"], "label": curve["label"], "layer": layers, "drift": sums})
    return [line_chart(line_marks(curves, "layer", "drift"), data["methods"], "layer", "drift")]
