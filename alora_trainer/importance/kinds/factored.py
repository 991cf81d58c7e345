"""."""

from __future__ import annotations

from typing import ClassVar

import torch

from alora_trainer.importance.kinds.elementwise import _matrix_shape
from alora_trainer.importance.kinds.kind import Importance
from alora_trainer.weights.row_blocks import row_blocks


class FactoredOmega(Importance):
    """``Omega ~ sum_c x_c y_c'`` with non-negative x (m, C) and y (n, C): 4 C (m + n) bytes for m n elements.

    Fitted by minimising the generalised Kullback-Leibler divergence (Lee and Seung 2001), whose solutions keep the sums of
    every row and every column of Omega: what is lost is only how importance is spread within them.
    """

    format = "factored"
    components: ClassVar[int] = 4
    iterations: ClassVar[int] = 60

    @classmethod
    def encode(cls, omega: torch.Tensor) -> Importance:
        x, y = factorize(omega.float(), cls.components, cls.iterations)
        return cls(_matrix_shape(omega), {"rows": x, "columns": y})

    @classmethod
    def part_kinds(cls, shape: tuple[int, int]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        return {"rows": (torch.float32, (shape[0], -1)), "columns": (torch.float32, (shape[1], -1))}

    @classmethod
    def encoded_kinds(cls, shape: tuple[int, int]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        components = min(cls.components, *shape)
        return {"rows": (torch.float32, (shape[0], components)), "columns": (torch.float32, (shape[1], components))}

    def rows(self, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        return self.parts["rows"][rows].to(dtype) @ self.parts["columns"].to(dtype).T


def uniform(shape: tuple[int, int], value: float) -> Importance:
    """An Omega that is `value` throughout, as one outer product."""
    return FactoredOmega(shape, {"rows": torch.full((shape[0], 1), value), "columns": torch.ones(shape[1], 1)})


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
