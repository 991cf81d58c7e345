"""An adapter's first directions, of a weight alone: the mathematics.

To second order, the movement of a weight that lowers the domain's loss most for a given rise of KL(p_base || p) on general text
is ``-c G^-1 M S^-1``, with M the domain's mean gradient and G, S the general curvature's Kronecker factors: a natural gradient
(Amari 1998) of one loss in the metric of another text. Its best approximation of rank r in that metric is, with
``H = (G + d)^-1/2 M (S + d)^-1/2 = U s V'``, made of the leading r columns of U and V; so A starts as ``V_r' (S + d)^-1/2``.

Without gradients, the directions a with the largest ``a' C a / a' (S + d) a`` are those in which the domain's inputs (second
moments C) are large and general inputs (S) are small: contrastive principal components in the form of a ratio (Salloum and
Kuo 2022, cPCA++; Abid et al. 2018, arXiv 1709.06716, have the difference).
"""

from __future__ import annotations

import torch

from alora_trainer.trainer.initialization.general_metric import GeneralMetric


def natural_directions(gradient: torch.Tensor, metric: GeneralMetric, rank: int) -> torch.Tensor:
    """A (r, n) for the domain's mean gradient M (m, n), in float64; its scale is arbitrary.

    Args:
        gradient: M.
        metric: the general one of this weight.
        rank: r, at most n.
    """
    whitened = metric.whiten_inputs(metric.whiten_outputs(gradient.double()))
    return metric.whiten_inputs(leading_right_vectors(whitened, rank).T)


def contrastive_directions(moments: torch.Tensor, metric: GeneralMetric, rank: int) -> torch.Tensor:
    """A (r, n) for the second moments C (n, n) of the domain's inputs, in float64; its scale is arbitrary.

    Args:
        moments: C.
        metric: the general one; its inputs' side is used.
        rank: r, at most n.
    """
    whitened = metric.whiten_inputs(metric.whiten_inputs(moments.double()).T)
    _, vectors = torch.linalg.eigh((whitened + whitened.T) / 2)
    return metric.whiten_inputs(_signed(vectors.flip(1)[:, :rank]).T)


def null_space_directions(metric: GeneralMetric, rank: int) -> torch.Tensor:
    """A (r, n): the eigenvectors of S with the smallest eigenvalues, orthonormal, as LoRA-Null's (arXiv 2503.02659).

    Of a basis that is kept in part, all that is orthogonal to it is alike, and directions of that come first.

    Args:
        metric: the general one; its inputs' side is used.
        rank: r, at most n.
    """
    kept = metric.inputs.vectors
    size, known = kept.shape
    everything = torch.linalg.qr(torch.cat([kept, torch.eye(size).to(kept)], dim=1)).Q
    rest = everything[:, known : known + rank]
    # Those that are kept are in the order of falling eigenvalues.
    return _signed(torch.cat([rest, kept.flip(1)], dim=1)[:, :rank]).T


def leading_right_vectors(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    """The leading right singular vectors (n, r) of a matrix (p, n), orthonormal and each with its largest element positive.

    By the eigenvectors of the smaller of both products with its transpose; where the matrix has a lower rank than `rank`, what
    is missing is orthonormal to the rest.
    """
    rows, columns = matrix.shape
    if columns <= rows:
        _, vectors = torch.linalg.eigh(matrix.T @ matrix)
        return _signed(vectors.flip(1)[:, :rank])
    _, left = torch.linalg.eigh(matrix @ matrix.T)
    right = matrix.T @ left.flip(1)[:, :rank]  # orthogonal, and the longest first
    if rank > right.shape[1]:
        right = torch.cat([right, torch.eye(columns, rank - right.shape[1]).to(right)], dim=1)
    return _signed(torch.linalg.qr(right).Q)


def _signed(vectors: torch.Tensor) -> torch.Tensor:
    """The same columns, each with its largest element positive: what LAPACK's signs are depends on rounding."""
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return vectors * torch.where(largest < 0, -1.0, 1.0)


def default_mean_square(features: float, columns: int) -> float:
    """Mean square of an element of ``A x`` for A as PEFT starts it: uniform within ``1 / sqrt(n)``, of variance 1 / 3n.

    Args:
        features: the mean of ``|x|**2``.
        columns: n.
    """
    return features / (3 * columns)
