"""How important the weights of each layer were found (the paper's figure 7)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from alora_trainer.artefact.heatmap import arrange
from alora_trainer.experiment.report.drawing.heat_map import heat_map
from alora_trainer.experiment.report.drawing.pictures import Drawing
from alora_trainer.experiment.report.gather import Comparison

NAME = "importance"
TITLE = "Importance by layer"
CAPTION = (
    "Natural logarithm of the norm of each adapted weight's importance, ln ||Omega_l||, mean over the recordings of all seeds. "
    "Layers across, kinds of weight down."
)


def numbers(comparison: Comparison) -> dict[str, Any] | None:
    """ln ||Omega_l|| of every weight: means over the recordings of all seeds."""
    by_seed: dict[int, Mapping[str, float]] = {}
    for variant in comparison.variants:
        for seed, result in variant.entries.items():
            if result.layer_norms is not None:
                by_seed.setdefault(seed, result.layer_norms)
    if not by_seed:
        return None
    names = list(next(iter(by_seed.values())))
    logs = {
        name: statistics.fmean(math.log(norms[name]) for norms in by_seed.values())
        for name in names
        if all(norms.get(name, 0) > 0 for norms in by_seed.values())
    }
    return {"seeds": sorted(by_seed), "log_norms": logs} if logs else None


def draw(data: Mapping[str, Any]) -> list[Drawing]:
    """A heat map: layers across, kinds of weight down."""
    kinds, layers, cells = arrange({name: math.exp(value) for name, value in data["log_norms"].items()})
    return [heat_map(kinds, [str(layer) for layer in layers], cells, "layer", "ln of the norm of importance")]
