"""Blocked arithmetic over a weight's own size: the only code of recording that touches (m, n) elements.

Rows are taken in blocks small enough to stay in the processor's cache; two scratch blocks serve all weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from alora_trainer.importance.estimators import Factors, StepFactors

# Elements in one block: 1 MB in float32 fits the second-level cache of the processors we measured.
BLOCK_ELEMENTS = 1 << 18


def block_rows(rows: int, columns: int) -> int:
    """How many rows of a (rows, columns) matrix make a block: at most `BLOCK_ELEMENTS` elements, one row at least."""
    return min(rows, max(1, BLOCK_ELEMENTS // max(columns, 1)))


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices that cut a (rows, columns) matrix into blocks of rows."""
    height = block_rows(rows, columns)
    for start in range(0, rows, height):
        yield slice(start, min(start + height, rows))


def fold_steps(w: torch.Tensor, steps: Sequence[StepFactors]) -> None:
    """``w -= sum over steps of gradient * movement`` (elementwise), in place, reading and writing w once.

    Args:
        w: the running path integral, (m, n).
        steps: the factors of the steps to fold in, in w's dtype and on w's device.
    """
    if not steps:
        return
    gradient, movement = _scratch(w), _scratch(w)
    for rows in row_blocks(*w.shape):
        block = w[rows]
        height = block.shape[0]
        for step in steps:
            torch.mm(step.gradient.left[rows], step.gradient.right, out=gradient[:height])
            torch.mm(step.movement.left[rows], step.movement.right, out=movement[:height])
            block.addcmul_(gradient[:height], movement[:height], value=-1.0)


def consolidate(w: torch.Tensor, total: Factors, xi: float) -> torch.Tensor:
    """Eq. 15, in place: ``w <- max(w, 0) / (Delta**2 + xi)``; returns w, which now is Omega.

    Args:
        w: the path integral over the task, (m, n).
        total: the movement Delta over the whole task, from its first to its last step.
        xi: damping, positive.
    """
    scratch = _scratch(w)
    for rows in row_blocks(*w.shape):
        block = w[rows]
        delta = torch.mm(total.left[rows], total.right, out=scratch[: block.shape[0]])
        block.clamp_(min=0.0).div_(delta.square_().add_(xi))
    return w


def _scratch(w: torch.Tensor) -> torch.Tensor:
    return torch.empty(block_rows(*w.shape), w.shape[1], dtype=w.dtype, device=w.device)
