"""Blocked arithmetic over a weight's own size: the only code of recording that touches (m, n) elements.

Rows are taken in blocks small enough to stay in the processor's cache; two scratch blocks serve a whole weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from alora_trainer.importance.recording.estimators import StepFactors
from alora_trainer.weights.row_blocks import block_rows, row_blocks
from alora_trainer.weights.steps import Matrix


def fold_steps(w: torch.Tensor, steps: Sequence[StepFactors]) -> None:
    """``w -= sum over steps of gradient * movement`` (elementwise), in place, reading and writing w once.

    Args:
        w: the running path integral, (m, n).
        steps: the factors of the steps to fold in, in w's dtype and on w's device.
    """
    gradient, movement = _scratch(w), _scratch(w)
    for rows in _blocks(w, w.device):
        for step in steps:
            _fold_block(w[rows], step, rows, gradient, movement)


def fold_staged(w: torch.Tensor, steps: Sequence[StepFactors], device: torch.device) -> None:
    """As `fold_steps` for a w elsewhere than the factors: w's blocks come to `device` and go back."""
    gradient, movement = _scratch(w, device), _scratch(w, device)
    for rows in _blocks(w, device):
        block = w[rows].to(device, non_blocking=True)
        for step in steps:
            _fold_block(block, step, rows, gradient, movement)
        if block.data_ptr() != w[rows].data_ptr():
            w[rows].copy_(block, non_blocking=True)
        del block  # before the next one arrives: one block and two scratches are all that is held


def _fold_block(
    block: torch.Tensor, step: StepFactors, rows: slice, gradient: torch.Tensor, movement: torch.Tensor
) -> None:
    height = block.shape[0]
    moved = _rows_of(step.movement, rows, movement[:height])
    block.addcmul_(_rows_of(step.gradient, rows, gradient[:height]), moved, value=-1.0)


def _rows_of(matrix: Matrix, rows: slice, out: torch.Tensor) -> torch.Tensor:
    """Some rows of a matrix, multiplied out into `out` if it is kept as factors."""
    if isinstance(matrix, torch.Tensor):
        return matrix[rows]
    return torch.mm(matrix.left[rows], matrix.right, out=out)


def consolidate(w: torch.Tensor, total: Matrix, xi: float) -> torch.Tensor:
    """Eq. 15, in place: ``w <- max(w, 0) / (Delta**2 + xi)``; returns w, which now is Omega.

    Args:
        w: the path integral over the task, (m, n).
        total: the movement Delta over the whole task, from its first to its last step, on w's device; not changed.
        xi: damping, positive; 0 where the weight has not moved, which leaves no importance: there is no scale to see any by.
    """
    if xi == 0:
        return w.zero_()
    xi = max(xi, torch.finfo(w.dtype).tiny)
    scratch = _scratch(w)
    for rows in _blocks(w, w.device):
        block = w[rows]
        delta = _rows_of(total, rows, scratch[: block.shape[0]])
        block.clamp_(min=0.0).div_(torch.mul(delta, delta, out=scratch[: block.shape[0]]).add_(xi))
    return w


def _blocks(w: torch.Tensor, device: torch.device) -> Iterator[slice]:
    return row_blocks(w.shape[0], w.shape[1], device)


def _scratch(w: torch.Tensor, device: torch.device | None = None) -> torch.Tensor:
    device = device or w.device
    return torch.empty(block_rows(w.shape[0], w.shape[1], device), w.shape[1], dtype=w.dtype, device=device)
