"""The report's figures, one module each.

A module has ``NAME`` (of the files), ``TITLE``, ``CAPTION``, ``numbers(comparison)``, which gives everything that is drawn as
plain data, or None where there is nothing to draw (``note`` is said under the figure), and ``draw(numbers)``, which gives
drawings of these alone, to stand side by side.
"""

from __future__ import annotations

from alora_trainer.experiment.report.figures import (
    cost,
    intervals,
    lambda_curves,
    layer_drift,
    layer_importance,
    learning,
    losses,
    pareto,
)

# In the order of the page.
FIGURES = (pareto, intervals, lambda_curves, losses, learning, cost, layer_importance, layer_drift)
