"""The data loss and the penalty apart, averaged over optimizer steps between two log lines and over processes."""

from __future__ import annotations

from typing import Any

import torch


class LossParts:
    """Running sums that stay on the device until they are logged."""

    def __init__(self) -> None:
        self._data_loss: torch.Tensor | None = None
        self._penalty: torch.Tensor | None = None
        self._steps = 0

    def add_data_loss(self, loss: torch.Tensor) -> None:
        """Add a micro-batch's share of its optimizer step's data loss (a detached scalar)."""
        loss = loss.float()
        self._data_loss = loss if self._data_loss is None else self._data_loss + loss

    def end_step(self, penalty: torch.Tensor | None) -> None:
        """An optimizer step has been made, with this penalty (lambda included, a detached scalar) or without any."""
        if penalty is not None:
            self._penalty = penalty if self._penalty is None else self._penalty + penalty
        self._steps += 1

    def flush(self, accelerator: Any) -> dict[str, float]:
        """Means since the last flush, over steps and processes: `ce_loss`, `penalty` and `penalty_ratio`."""
        if self._data_loss is None or self._steps == 0:
            return {}
        steps = self._steps
        data_loss = accelerator.gather(self._data_loss.reshape(1)).mean().item() / steps
        penalty = 0.0 if self._penalty is None else self._penalty.item() / steps
        self._data_loss, self._penalty, self._steps = None, None, 0
        ratio = penalty / data_loss if data_loss > 0 else 0.0
        return {"ce_loss": data_loss, "penalty": penalty, "penalty_ratio": ratio}
