"""How important the weights of each layer were found (the paper's figure 7)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from alora_trainer.artefact.heatmap import arrange
from alora_trainer.experiment.report.gather import Comparison
from alora_trainer.experiment.report.style import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


def draw(data: dict[str, Any]) -> Figure:
    """A heat map: layers across, kinds of weight down."""
    kinds, layers, cells = arrange({name: math.exp(value) for name, value in data["log_norms"].items()})
    figure = new_figure(max(5.0, 0.45 * len(layers) + 3.6), 1.4 + 0.36 * len(kinds))
    axes = figure.add_subplot()
    image = axes.imshow(cells, aspect="auto", cmap="cividis")
    axes.set_yticks(range(len(kinds)), kinds, fontsize=9)
    every = max(1, len(layers) // 16)
    axes.set_xticks(range(0, len(layers), every), [str(layer) for layer in layers[::every]], fontsize=9)
    axes.set_xlabel("layer")
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)
    if len(layers) <= 16:
        flat = [value for row in cells for value in row if math.isfinite(value)]
        middle = (min(flat) + max(flat)) / 2
        for row, values in enumerate(cells):
            for column, value in enumerate(values):
                if math.isfinite(value):
                    colour = "white" if value < middle else "black"
                    axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(image, ax=axes, label=r"$\ln\,\|\Omega_l\|_2$")
    return figure
