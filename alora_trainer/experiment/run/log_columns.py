"""A training's log as columns: what curves are drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# What a log line has beside measurements.
_NOT_MEASURED = ("epoch", "step", "total_flos")


def columns(log_history: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[Any]]]:
    """The Trainer's log by kind of line.

    Args:
        log_history: `TrainerState.log_history`.

    Returns:
        ``training`` has the lines of the training itself and ``curve`` those of measurements in between (see `LearningCurve`);
        each with a list for ``step`` and for everything that was measured, None where a line lacks it. Single weights' drift
        is left out (`StartingPoint.drift` has it at the end). Kinds of which there is no line are left out.
    """
    kinds = {
        "training": [line for line in log_history if "loss" in line and "learning_rate" in line],
        "curve": [line for line in log_history if any(key.startswith("curve_") for key in line)],
    }
    return {kind: _columns(lines) for kind, lines in kinds.items() if lines}


def _columns(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    keys = dict.fromkeys(
        key
        for line in lines
        for key, value in line.items()
        if isinstance(value, (int, float)) and key not in _NOT_MEASURED and "/" not in key
    )
    return {"step": [line["step"] for line in lines]} | {
        key.removeprefix("curve_"): [rounded(line.get(key)) for line in lines] for key in keys
    }


def rounded(value: Any) -> Any:
    """A float with six significant digits; anything else as it is."""
    return float(f"{value:.6g}") if isinstance(value, float) else value
