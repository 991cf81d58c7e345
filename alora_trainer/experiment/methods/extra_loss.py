"""Trainings with a loss of their own beside the domain's: how it enters, under accumulation too, and how it is logged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from alora_trainer.trainer.mixin import ALoRATrainer
from alora_trainer.trainer.running_losses import number_from


class ExtraLossTrainer(ALoRATrainer):
    """Adds a mean of its own to every micro-batch's loss, whatever the number of tokens in the other.

    Attributes:
        extra_name: what the log calls it.
    """

    extra_name: ClassVar[str] = "extra_loss"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._extra_losses: list[torch.Tensor] = []

    def added(self, loss: torch.Tensor, extra: torch.Tensor, weight: float, num_items_in_batch: Any) -> torch.Tensor:
        """The micro-batch's loss and ``weight * extra``: over a window, the extra losses add up to the mean of theirs.

        Args:
            loss: of the domain, as the trainer computes it.
            extra: a mean over tokens.
            weight: what that is multiplied by.
            num_items_in_batch: as `compute_loss` was given it.
        """
        self._extra_losses.append(extra.detach().float())
        # After the trainer's own division, the window's micro-batches add up to the mean of their losses.
        share = self.loss_divisor(num_items_in_batch) / self.current_gradient_accumulation_steps
        return loss + weight * extra * share

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the extra loss to the training log."""
        if self._extra_losses and "loss" in logs:
            logs[self.extra_name] = float(torch.stack(self._extra_losses).mean())
            self._extra_losses = []
        super().log(logs, *args, **kwargs)

    def unlogged_losses(self) -> dict[str, Any]:
        return super().unlogged_losses() | {f"{self.extra_name}es": [float(loss) for loss in self._extra_losses]}

    def take_unlogged_losses(self, state: Mapping[str, Any]) -> None:
        super().take_unlogged_losses(state)
        kept = state.get(f"{self.extra_name}es", [])
        self._extra_losses = [torch.tensor(number_from(loss), device=self.args.device) for loss in kept]
