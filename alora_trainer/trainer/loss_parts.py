"""The data loss, the penalty and the rise that it predicts, averaged over the steps between two log lines and processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


class LossParts:
    """Running sums that stay on the device until they are logged."""

    def __init__(self) -> None:
        # Numbers after a resume, until the first step's tensors say which device and dtype.
        self._data_loss: torch.Tensor | float | None = None
        self._penalty: torch.Tensor | float | None = None
        self._steps = 0
        self._predicted: torch.Tensor | float | None = None
        self._predictions = 0

    def add_data_loss(self, loss: torch.Tensor) -> None:
        """Add a micro-batch's share of its optimizer step's data loss (a detached scalar)."""
        self._data_loss = _added(self._data_loss, loss.float())

    def end_step(self, penalty: torch.Tensor | None, predicted: torch.Tensor | None = None) -> None:
        """An optimizer step has been made.

        Args:
            penalty: lambda included, a detached scalar; None for a step without any.
            predicted: the rise of general loss that it predicts (a detached scalar), if it does.
        """
        if penalty is not None:
            self._penalty = _added(self._penalty, penalty)
        if predicted is not None:
            self._predicted = _added(self._predicted, predicted)
            self._predictions += 1
        self._steps += 1

    def flush(self, accelerator: Any) -> dict[str, float]:
        """Means since the last flush, over steps and processes: `ce_loss`, `penalty`, `penalty_ratio`; and `predicted_rise`,
        over the steps that had one."""
        if self._data_loss is None or self._steps == 0:
            return {}
        steps = self._steps
        data_loss = _mean(self._data_loss, accelerator) / steps
        penalty = 0.0 if self._penalty is None else float(self._penalty) / steps
        means = {
            "ce_loss": data_loss,
            "penalty": penalty,
            "penalty_ratio": penalty / data_loss if data_loss > 0 else 0.0,
        }
        if self._predicted is not None:
            means["predicted_rise"] = float(self._predicted) / self._predictions
        self._data_loss, self._penalty, self._steps = None, None, 0
        self._predicted, self._predictions = None, 0
        return means

    def state(self, accelerator: Any) -> dict[str, Any]:
        """The sums since the last flush, as plain data; all processes call it together."""
        return {
            "data_loss": None if self._data_loss is None else _mean(self._data_loss, accelerator),
            "penalty": None if self._penalty is None else float(self._penalty),
            "steps": self._steps,
            "predicted": None if self._predicted is None else float(self._predicted),
            "predictions": self._predictions,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on with what `state` gave."""
        self._data_loss, self._penalty, self._steps = state["data_loss"], state["penalty"], int(state["steps"])
        # An earlier version's checkpoint has none.
        self._predicted, self._predictions = state.get("predicted"), int(state.get("predictions", 0))


def _added(before: torch.Tensor | float | None, value: torch.Tensor) -> torch.Tensor:
    return value if before is None else torch.as_tensor(before, dtype=value.dtype, device=value.device) + value


def _mean(data_loss: torch.Tensor | float, accelerator: Any) -> float:
    if not isinstance(data_loss, torch.Tensor):
        return data_loss  # of a checkpoint, where it is the mean already
    return float(accelerator.gather(data_loss.reshape(1)).mean())
