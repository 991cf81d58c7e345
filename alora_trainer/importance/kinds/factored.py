"""Omega as a sum of a few outer products: the only format that is smaller than the weight by more than a constant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.kinds.dense import DenseOmega
from alora_trainer.importance.kinds.elementwise import Elementwise, all_within, matrix_shape, permuted
from alora_trainer.importance.kinds.kind import PartType
from alora_trainer.weights.row_blocks import row_blocks


class FactoredOmega(Elementwise):
    """``Omega ~ sum_c x_c y_c'`` with non-negative x (m, C) and y (n, C): 4 C (m + n) bytes for m n elements.

    Fitted by minimising the generalised Kullback-Leibler divergence (Lee and Seung 2001), whose solutions keep the sums of
    every row and every column of Omega: what is lost is only how importance is spread within them.
    """

    format = "factored"
    components: ClassVar[int] = 4
    iterations: ClassVar[int] = 60

    @classmethod
    def encode(cls, omega: torch.Tensor) -> Elementwise:
        x, y = factorize(omega.float(), cls.components, cls.iterations)
        return cls(matrix_shape(omega), {"rows": x, "columns": y})

    @classmethod
    def part_types(cls, shape: tuple[int, int]) -> dict[str, PartType]:
        return {"rows": (torch.float32, (shape[0], -1)), "columns": (torch.float32, (shape[1], -1))}

    @classmethod
    def made_part_types(cls, shape: tuple[int, int]) -> dict[str, PartType]:
        components = min(cls.components, *shape)
        return {"rows": (torch.float32, (shape[0], components)), "columns": (torch.float32, (shape[1], components))}

    def rows(self, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        return self.parts["rows"][rows].to(dtype) @ self.parts["columns"].to(dtype).T

    @classmethod
    def check_free_sizes(cls, shape: tuple[int, int], found: Mapping[str, tuple[int, ...]]) -> None:
        components = {sizes[1] for sizes in found.values()}
        if len(components) != 1 or not all(0 < count <= min(shape) for count in components):
            raise ValueError("the numbers of components do not fit")

    def check_parts(self, name: str) -> None:
        for factor in self.parts.values():
            if not all_within(factor, 0.0, torch.finfo(torch.float32).max):
                raise ALoRAError(
                    f"the factors of the importance of {name} hold NaN, infinite or negative values: record it again"
                )

    @property
    def thin_factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.parts["rows"], self.parts["columns"]

    def shuffled(self, generator: torch.Generator) -> Elementwise:
        """In float32: factors have no places to exchange, and values in another order have no factors."""
        return DenseOmega.encode(permuted(self.dense(), generator))


class WideFactoredOmega(FactoredOmega):
    """The same with sixteen outer products: the bytes of importance in Kronecker form with sixteen eigenvectors a side."""

    format = "factored_16"
    components = 16
    listed = False


def uniform(shape: tuple[int, int], value: float) -> Elementwise:
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
