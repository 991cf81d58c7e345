"""Element-wise importance: how much every element matters by itself, ``M = diag(Omega)``."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch

from alora_trainer.importance.kinds.kind import Importance, Measure
from alora_trainer.weights.row_blocks import row_blocks

ELEMENTWISE = "elementwise"


@dataclass(frozen=True)
class CodedElements:
    """Omega as one number an element, in the layout that a kernel can read directly.

    Attributes:
        numbers: (m, n): Omega itself in a floating dtype, or codes in uint8.
        scales: (m, blocks, 2) in float32, where `numbers` are codes: Omega is ``2**(low + step * (code - 1))`` for a code
            above 0, and 0 for 0, with (low, step) of the code's row and its block of columns; None for Omega itself.
        block: columns that share a pair of scales.
    """

    numbers: torch.Tensor
    scales: torch.Tensor | None = None
    block: int = 1


class Elementwise(Importance):
    """Omega of one weight, (m, n) and non-negative, in some format: ``R = sum_k Omega_k D_k**2`` (arXiv 2501.13669 eq. 16).

    What a format offers beyond rows in plain numbers, it says by `thin_factors` and `coded_elements`; whoever computes with
    Omega takes what there is.
    """

    kind = ELEMENTWISE

    @classmethod
    @abstractmethod
    def encode(cls, omega: torch.Tensor) -> Elementwise:
        """Keep a dense Omega (m, n) in this format."""

    @abstractmethod
    def rows(self, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        """The dense rows `rows` of Omega in `dtype`; may share memory with the parts."""

    @property
    def thin_factors(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """x (m, C) and y (n, C) with ``Omega = x y'``, where Omega is kept so; else None."""
        return None

    @property
    def coded_elements(self) -> CodedElements | None:
        """One number an element, where Omega is kept so; else None."""
        return None

    def dense(self) -> torch.Tensor:
        """All of Omega as float32 (float64 where it is kept so)."""
        return self.rows(slice(0, self.shape[0]), torch.float32)

    def check_parts(self, name: str) -> None:
        pass  # what can be wrong with plain numbers, `measure` shows

    def diagonal(self) -> torch.Tensor:
        return self.dense()

    def apply(self, movement: torch.Tensor) -> torch.Tensor:
        return self.rows(slice(0, self.shape[0]), movement.dtype) * movement

    def measure(self) -> Measure:
        """In float64 and block by block."""
        total, squares, smallest = 0.0, 0.0, float("inf")
        for rows in row_blocks(*self.shape):
            block = self.rows(rows, torch.float64)
            total += float(block.sum())
            squares += float(block.square().sum())
            smallest = min(smallest, float(block.min()))
        return Measure(total, math.sqrt(squares), smallest)

    def add(self, earlier: Importance) -> Elementwise:
        own = self.dense()
        return type(self).encode(own + earlier.diagonal().to(own))

    def convert(self, to: type[Importance]) -> Importance:
        if to is not type(self) and issubclass(to, Elementwise):
            return to.encode(self.dense())
        return super().convert(to)

    def shuffled(self, generator: torch.Generator) -> Elementwise:
        """The values in a random order: norm and sum stay as they were."""
        return type(self).encode(permuted(self.dense(), generator))


def permuted(omega: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The elements of a matrix in a random order."""
    return omega.flatten()[torch.randperm(omega.numel(), generator=generator)].view(omega.shape)


def matrix_shape(omega: torch.Tensor) -> tuple[int, int]:
    """(m, n) of a matrix, as two numbers."""
    rows, columns = omega.shape
    return rows, columns


def all_within(values: torch.Tensor, least: float, most: float) -> bool:
    """Whether all values lie in the interval; NaN does not."""
    return bool(((values >= least) & (values <= most)).all())
