"""Importance in a basis, made up and written out as the metric (mn, mn) that it stands for."""

from __future__ import annotations

import torch

from alora_trainer.importance.kinds.eigenbasis import eigen_side
from alora_trainer.importance.kinds.ekfac import EkfacOmega
from alora_trainer.importance.kinds.in_basis import InBasis
from alora_trainer.importance.kinds.kronecker import CovarianceOmega, KroneckerOmega


def moments(size: int, seed: int) -> torch.Tensor:
    """A covariance (size, size) with a falling spectrum, in float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3 * size, size, dtype=torch.float64, generator=generator)
    mixed = x @ torch.randn(size, size, dtype=torch.float64, generator=generator)
    return mixed.T @ mixed / (3 * size)


def random_importance(kind: str, m: int, n: int, kept: tuple[int, int], seed: int) -> InBasis:
    """Of a weight (m, n), with at most `kept` directions on either side."""
    outputs, inputs = eigen_side(moments(m, seed), kept[0]), eigen_side(moments(n, seed + 500), kept[1])
    if kind == "covariance":
        return CovarianceOmega.of((m, n), outputs, inputs)
    if kind == "kronecker":
        return KroneckerOmega.of((m, n), outputs, inputs)
    parts = {"output_vectors": outputs.vectors.float(), "input_vectors": inputs.vectors.float()}
    shape = (outputs.vectors.shape[1] + 1, inputs.vectors.shape[1] + 1)
    omega = torch.rand(shape, generator=torch.Generator().manual_seed(seed + 900))
    return EkfacOmega((m, n), parts | {"omega": omega})


def dense_metric(stored: InBasis) -> torch.Tensor:
    """M itself, (mn, mn), in float64: each element of Omega times the projection that it is for."""
    projections = [
        _projections(vectors) for vectors in (stored.output_vectors(torch.float64), stored.input_vectors(torch.float64))
    ]
    k, h = stored.kept
    omega = stored.omega_rows(slice(0, k + 1), torch.float64)
    m, n = stored.shape
    total = torch.zeros(m * n, m * n, dtype=torch.float64)
    for i, of_outputs in enumerate(projections[0]):
        for j, of_inputs in enumerate(projections[1]):
            total += omega[i, j] * torch.kron(of_outputs, of_inputs)
    return total


def _projections(vectors: torch.Tensor) -> list[torch.Tensor]:
    kept = [torch.outer(v, v) for v in vectors.T]
    rest = torch.eye(vectors.shape[0], dtype=vectors.dtype)
    return [*kept, rest - sum(kept, torch.zeros_like(rest))]
