"""The report's figures, one module each.

A module has ``NAME`` (of the files), ``TITLE``, ``CAPTION``, ``numbers(comparison)``, which gives everything that is drawn as
plain data, or None where there is nothing to draw, and ``draw(numbers)``, which gives a matplotlib figure of these alone.
"""

from __future__ import annotations

from alora_trainer.experiment.report.figures import (
    cost,
    drift,
    importance,
    intervals,
    learning,
    losses,
    pareto,
    strength,
)

# In the order of the page.
FIGURES = (pareto, intervals, strength, losses, learning, cost, importance, drift)
