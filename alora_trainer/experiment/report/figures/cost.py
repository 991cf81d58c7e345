"""What every method takes: seconds and memory (the paper's figure 5)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from alora_trainer.experiment.report.drawing.bars import bars
from alora_trainer.experiment.report.drawing.pictures import Drawing
from alora_trainer.experiment.report.gather import BASE, Comparison
from alora_trainer.experiment.report.variant_rows import seconds_before

NAME = "cost"
TITLE = "Cost"
CAPTION = (
    "Wall-clock seconds of the training on the domain (full) and of what comes before it, such as the recording (light), and "
    "peak memory of the training on the domain: what PyTorch allocated on a GPU, the whole process on a CPU. Mean over seeds "
    "and over a method's variants. The recording can be shared between many domains."
)


def numbers(comparison: Comparison) -> dict[str, Any] | None:
    """Seconds of the training and of what comes before it, and peak bytes, by method: means over seeds and variants."""
    rows = []
    for method in comparison.methods:
        results = [result for variant in comparison.of(method) for result in variant.entries.values()]
        trained = [(result, result.train) for result in results if result.train is not None and result.train.seconds]
        if method != BASE and trained:
            rows.append(
                {
                    "method": method,
                    "seconds": statistics.fmean(cost.seconds or 0 for _, cost in trained),
                    "seconds_before": statistics.fmean(seconds_before(result) for result, _ in trained),
                    "peak_bytes": statistics.fmean(cost.peak_bytes or 0 for _, cost in trained),
                }
            )
    return {"methods": comparison.methods, "rows": rows} if rows else None


def draw(data: Mapping[str, Any]) -> list[Drawing]:
    """Bars of seconds, and of memory, a row a method."""
    rows = data["rows"]
    seconds = [
        (row["method"], [(row["seconds_before"], "before it"), (row["seconds"], "the training")]) for row in rows
    ]
    memory = [(row["method"], [(row["peak_bytes"] / 2**30, "peak memory")]) for row in rows]
    return [
        bars(seconds, data["methods"], "wall-clock time (s)", 0),
        bars(memory, data["methods"], "peak memory (GiB)", 2),
    ]
