"""The paper's figure 7: log ||Omega_l|| as a heat map, layers across, kinds of weight down."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Mapping
from pathlib import Path

_LAYER = re.compile(r"\.(\d+)\.")


def arrange(norms: Mapping[str, float]) -> tuple[list[str], list[int], list[list[float]]]:
    """Weights as a table: kinds of weight, layer numbers, and the natural logarithm of each norm.

    "model.layers.3.self_attn.q_proj" is of the kind "self_attn.q_proj" in layer 3; a name without a number is its own kind in
    layer 0. NaN stands where there is no weight, or its norm is zero.
    """
    places = {}
    for name, norm in norms.items():
        match = _LAYER.search(name)
        kind, layer = (name[match.end() :], int(match.group(1))) if match else (name, 0)
        places[kind, layer] = math.log(norm) if norm > 0 else math.nan
    kinds = list(dict.fromkeys(kind for kind, _ in places))
    layers = sorted({layer for _, layer in places})
    return kinds, layers, [[places.get((kind, layer), math.nan) for layer in layers] for kind in kinds]


def draw_heatmap(norms: Mapping[str, float], path: Path) -> bool:
    """Write the heat map as a PNG picture; False (and no file) where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds, layers, table = arrange(norms)
    size = (max(4.0, 0.35 * len(layers) + 2.5), max(1.8, 0.4 * len(kinds) + 1.2))
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(table, aspect="auto", cmap="viridis")
    axes.set_yticks(range(len(kinds)), kinds)
    every = max(1, len(layers) // 16)
    axes.set_xticks(range(0, len(layers), every), [str(layer) for layer in layers[::every]])
    axes.set_xlabel("layer")
    axes.set_title("importance by layer and weight")
    figure.colorbar(image, ax=axes, label=r"$\ln \|\Omega_l\|_2$")
    figure.savefig(path, metadata={"Software": None})
    return True
