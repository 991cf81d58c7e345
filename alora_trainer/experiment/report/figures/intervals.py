"""By how much ALoRA answers more items rightly than each other method where both have forgotten as much."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alora_trainer.experiment.report.drawing.differences import differences
from alora_trainer.experiment.report.drawing.pictures import Drawing
from alora_trainer.experiment.report.gather import Comparison
from alora_trainer.experiment.report.matched import matched_accuracy

NAME = "intervals"
TITLE = "Accuracy of ALoRA minus that of the others, at equal forgetting"
CAPTION = (
    "Difference of accuracy over the same items (right of zero, ALoRA answers more of them rightly), both curves read at the "
    "most forgetting that both reach, which stands beside each row (rise of general perplexity). Between trainings, and "
    "between a training and the untouched model, a curve is a straight line. Hollow: it is the other's curve that was read "
    "between two points; curves bend upwards, so that such a reading tends to be too low, which flatters ALoRA. Lines are "
    "95 % intervals of a paired bootstrap over items, answers averaged over seeds. They say how far the difference would hold "
    "for other items of the kind, not for other seeds (for these, see the t-tests)."
)


def numbers(comparison: Comparison) -> dict[str, Any] | None:
    """What `matched_accuracy` gives, and the names of all methods."""
    rows, missing = matched_accuracy(comparison)
    if not rows:
        return None
    note = {"note": f"Not compared: {' '.join(missing)}"} if missing else {}
    return {"methods": comparison.methods, "task": comparison.task, "rows": rows} | note


def draw(data: Mapping[str, Any]) -> list[Drawing]:
    """An interval for every pair, around zero."""
    return [differences(data["rows"], data["methods"], f"difference of {data['task']} accuracy (percentage points)")]
