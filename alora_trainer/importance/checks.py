"""Values that no Omega has: what a stranger's map is searched for, part by part and block by block."""

from __future__ import annotations

import torch

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.fold import row_blocks
from alora_trainer.importance.storage import StoredOmega

# Beyond this, Omega times its layer's weight (eq. 17), as the penalty multiplies them in float32, would leave its range.
LARGEST_NORM = 1e15
# Logarithms that float32 numbers have, and the widest step between 254 levels of them.
_LOWEST, _HIGHEST, _WIDEST_STEP = -150.0, 128.0, 278.0 / 254


def check_values(name: str, omega: StoredOmega) -> None:
    """Look at the parts themselves, where the dense values would not show what is wrong with them.

    Dense values (NaN, infinity, negative ones, their norm) are looked at when an `ImportanceMap` is made of them.

    Raises:
        ALoRAError: a scale is absurd, or a factor has values that are negative or not finite.
    """
    if omega.format == "log8":
        scales = omega.parts["scales"]
        for rows in row_blocks(scales.shape[0], max(scales.shape[1] * 2, 1)):
            low, step = scales[rows].unbind(-1)
            if not _within(low, _LOWEST, _HIGHEST) or not _within(step, 0.0, _WIDEST_STEP):
                raise ALoRAError(f"the importance of {name} has absurd scales: the map is damaged, record it again")
    if omega.format == "factored":
        for factor in omega.parts.values():
            if not _within(factor, 0.0, torch.finfo(torch.float32).max):
                raise ALoRAError(
                    f"the factors of the importance of {name} hold NaN, infinite or negative values: record it again"
                )


def _within(values: torch.Tensor, least: float, most: float) -> bool:
    """Whether all values lie in the interval; NaN does not."""
    return bool(((values >= least) & (values <= most)).all())
