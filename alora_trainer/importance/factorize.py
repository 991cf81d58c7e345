"""Non-negative factorisation of an importance matrix: ``Omega ~ x y'`` with few components."""

from __future__ import annotations

import torch

from alora_trainer.importance.fold import row_blocks

_TINY = 1e-30


def factorize(
    omega: torch.Tensor, components: int, iterations: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """x (m, C) and y (n, C), non-negative, that minimise the generalised Kullback-Leibler divergence of x y' from Omega.

    Multiplicative updates (Lee and Seung 2001), block by block so that no second (m, n) matrix is ever held. One component
    is exact at once (row sums times column sums); more start from it, disturbed by `seed`.

    Args:
        omega: non-negative, (m, n).
        components: C, at least 1; more than min(m, n) are of no use and are left out.
        iterations: rounds of updates.
    """
    components = min(components, *omega.shape)
    generator = torch.Generator().manual_seed(seed)
    rows, columns = omega.sum(1), omega.sum(0)
    total = float(rows.sum())
    if total == 0:
        return omega.new_zeros(omega.shape[0], components), omega.new_zeros(omega.shape[1], components)
    scale = (total * components) ** 0.5
    x = (rows / scale)[:, None] * _disturbance(omega.shape[0], components, generator).to(omega)
    y = (columns / scale)[:, None] * _disturbance(omega.shape[1], components, generator).to(omega)
    if components == 1:
        return (rows / total**0.5)[:, None], (columns / total**0.5)[:, None]
    for _ in range(iterations):
        y = y * _update(omega, x, y)[1] / x.sum(0).clamp_min(_TINY)
        x = x * _update(omega, x, y)[0] / y.sum(0).clamp_min(_TINY)
    return x, y


def _disturbance(size: int, components: int, generator: torch.Generator) -> torch.Tensor:
    return 0.5 + torch.rand(size, components, generator=generator)


def _update(omega: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``(Omega / x y') y`` and ``(Omega / x y')' x``."""
    for_x, for_y = torch.empty_like(x), torch.zeros_like(y)
    for rows in row_blocks(*omega.shape):
        ratio = omega[rows] / (x[rows] @ y.T).clamp_min_(_TINY)
        for_x[rows] = ratio @ y
        for_y += ratio.T @ x[rows]
    return for_x, for_y
