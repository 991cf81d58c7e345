"""A training's log as columns: what curves are drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alora_trainer.adapted import AdaptedWeight, adapted_weights
from alora_trainer.errors import ALoRAError
from alora_trainer.importance.estimators import movement_factors

# What a log line has beside measurements.
_NOT_MEASURED = ("epoch", "step", "total_flos")


def columns(log_history: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[Any]]]:
    """The Trainer's log by kind of line.

    Args:
        log_history: `TrainerState.log_history`.

    Returns:
        ``training`` has the lines of the training itself and ``curve`` those of measurements in between (see `LearningCurve`);
        each with a list for ``step`` and for everything that was measured, None where a line lacks it. Single weights' drift
        is left out (`Start.drift` has it at the end). Kinds of which there is no line are left out.
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
        key.removeprefix("curve_"): [_short(line.get(key)) for line in lines] for key in keys
    }


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


class Start:
    """Where the adapted weights stand before a training, to say afterwards how far each has moved."""

    def __init__(self, model: Any) -> None:
        self._before = [(weight, weight.a.double().clone(), weight.b.double().clone()) for weight in _adapted(model)]

    def drift(self) -> dict[str, float]:
        """``||W - W_start||_2`` (Frobenius) of every adapted weight, from the small factors (exact for small movements)."""
        norms = {}
        for weight, a, b in self._before:
            factors = movement_factors(a, b, weight.a.double(), weight.b.double(), weight.scaling)
            squared = float(((factors.left.T @ factors.left) * (factors.right @ factors.right.T)).sum())
            norms[weight.name] = _short(max(squared, 0.0) ** 0.5)
        return norms


def _adapted(model: Any) -> list[AdaptedWeight]:
    """The adapted weights; none where what is trained is not LoRA, or a variant whose movement is not ``s B A``."""
    try:
        return adapted_weights(model)
    except ALoRAError:
        return []  # the training itself is not the worse for it; its drift is just not known
