"""A symmetric matrix by its leading eigenvectors, and the mean of all other eigenvalues."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from alora_trainer.weights.row_blocks import row_blocks


@dataclass(frozen=True)
class EigenSide:
    """A positive semidefinite matrix (d, d) as ``U diag(values) U' + rest (I - U U')``.

    Attributes:
        vectors: U (d, k), orthonormal.
        values: (k + 1,): the eigenvalues of U's columns, falling, and last `rest`, the mean of all others (or 0).
    """

    vectors: torch.Tensor
    values: torch.Tensor

    def mean(self, size: int) -> float:
        """The mean of all d = `size` eigenvalues."""
        kept = self.vectors.shape[1]
        return (float(self.values[:kept].double().sum()) + (size - kept) * float(self.values[kept])) / size


def eigen_side(matrix: torch.Tensor, keep: int | None = None, share: float | None = None) -> EigenSide:
    """The leading eigenvectors of a positive semidefinite matrix, and the mean of its other eigenvalues: its trace is kept.

    Args:
        matrix: (d, d), symmetric; in float32 or float64, which is what it is decomposed in.
        keep: how many eigenvectors at most; None for all.
        share: as many as hold this share of the trace together, at most `keep`; None for `keep`.

    Returns:
        In the matrix's dtype. Eigenvalues that rounding has made negative are 0.
    """
    values, vectors = torch.linalg.eigh(matrix)
    values = values.flip(0).clamp_min(0)
    kept = kept_directions(values, keep, share)
    rest = values[kept:].mean() if kept < len(values) else values.new_zeros(())
    leading = vectors[:, vectors.shape[1] - kept :].flip(1)
    return EigenSide(leading.contiguous(), torch.cat([values[:kept], rest[None]]))


def kept_directions(values: torch.Tensor, keep: int | None, share: float | None) -> int:
    """How many of the eigenvalues (d,), which fall, `eigen_side` keeps."""
    kept = len(values) if keep is None else min(keep, len(values))
    if share is not None:
        reached = values.cumsum(0) >= share * values.sum() * (1 - 1e-12)
        kept = min(kept, int(reached.to(torch.uint8).argmax()) + 1)
    return kept


def turned(vectors: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """``U' right``, (k, p), for U (d, k), in the dtype of `right` (d, p); in blocks where U is kept in another.

    As (right' U)': BLAS takes up to twenty times as long for U' right where p is as small as LoRA's ranks are.
    """
    if vectors.dtype == right.dtype:
        return (right.T @ vectors).T
    total = right.new_zeros(right.shape[1], vectors.shape[1])
    for rows in row_blocks(vectors.shape[0], vectors.shape[1], vectors.device) if vectors.numel() else ():
        total.addmm_(right[rows].T, vectors[rows].to(right.dtype))
    return total.T


def turned_back(vectors: torch.Tensor, within: torch.Tensor) -> torch.Tensor:
    """``U within``, (d, p), for U (d, k), in the dtype of `within` (k, p); in blocks where U is kept in another."""
    within = within.T.contiguous().T  # column by column, which BLAS multiplies twice as fast
    if vectors.dtype == within.dtype:
        return vectors @ within
    result = within.new_zeros(vectors.shape[0], within.shape[1])
    for rows in row_blocks(vectors.shape[0], vectors.shape[1], vectors.device) if vectors.numel() else ():
        torch.mm(vectors[rows].to(within.dtype), within, out=result[rows])
    return result


def multiply(vectors: torch.Tensor, values: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """``(U diag(values) U' + rest (I - U U')) right`` for U (d, k), values (k + 1,) and right (d, p): never (d, d)."""
    rest = values[-1]
    return turned_back(vectors, (values[:-1] - rest)[:, None] * turned(vectors, right)).add_(rest * right)


def symmetric(vectors: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The matrix (d, d) itself."""
    return multiply(vectors, values, torch.eye(vectors.shape[0], dtype=vectors.dtype, device=vectors.device))
