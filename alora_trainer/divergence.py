"""Numbers that are not finite: what broke, where, at which step, and where to go on from."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from alora_trainer.errors import ALoRAError
from alora_trainer.weights import TrainedWeight


class Diverged(ALoRAError):
    """Training has produced NaN or infinity.

    Args:
        what: "the loss", "the penalty", "the gradient" or "the importance".
        layer: the weight that shows it first, if one is known.
    """

    def __init__(self, what: str, layer: str | None, where: str = "") -> None:
        self.what = what
        self.layer = layer
        of = f" of {layer}" if layer is not None else ""
        super().__init__(f"{what}{of} is not finite{where}: lower the learning rate, or look for bad data")

    def at(self, step: int, checkpoint: str | None) -> Diverged:
        """The same with the optimizer step that it happened in, and the checkpoint to go on from."""
        after = (
            f"; the last good checkpoint is {checkpoint}" if checkpoint else "; there is no good checkpoint before it"
        )
        return Diverged(self.what, self.layer, f" in step {step}{after}")


def first_not_finite(weights: Sequence[TrainedWeight]) -> str | None:
    """The first weight that has itself become NaN or infinite; None if the trouble is elsewhere."""
    for weight in weights:
        if not all(bool(torch.isfinite(matrix).all()) for matrix in weight.matrices):
            return weight.name
    return None
