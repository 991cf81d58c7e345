"""."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch

from alora_trainer.weights.row_blocks import row_blocks


class Importance(ABC):
    """Omega of one weight, (m, n), in some format.

    Attributes:
        format: the format's name.
        parts: the format's tensors by part name; the empty name stands for the tensor of a format that has only one.
    """

    format: ClassVar[str]

    def __init__(self, shape: tuple[int, int], parts: Mapping[str, torch.Tensor]) -> None:
        self.shape = shape
        self.parts = dict(parts)

    @classmethod
    @abstractmethod
    def encode(cls, omega: torch.Tensor) -> Importance:
        """Keep a dense Omega (m, n) in this format."""

    @classmethod
    @abstractmethod
    def part_kinds(cls, shape: tuple[int, int]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """dtype and shape of every part for an Omega of `shape`; a size of -1 is free (the number of components)."""

    @classmethod
    def parameters(cls) -> dict[str, int]:
        """Numbers that the parts cannot be read without."""
        return {}

    @classmethod
    def encoded_kinds(cls, shape: tuple[int, int]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """`part_kinds` as `encode` would make them: no size is free."""
        return cls.part_kinds(shape)

    @property
    def kinds(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """dtype and shape of the parts as they are."""
        return {name: (part.dtype, tuple(part.shape)) for name, part in self.parts.items()}

    @abstractmethod
    def rows(self, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        """The dense rows `rows` of Omega in `dtype`; may share memory with the parts."""

    def dense(self) -> torch.Tensor:
        """All of Omega as float32 (float64 where it is kept so)."""
        return self.rows(slice(0, self.shape[0]), torch.float32)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())

    def to(self, device: torch.device | str) -> Importance:
        """The same on another device."""
        return type(self)(self.shape, {name: part.to(device) for name, part in self.parts.items()})

    def measure(self) -> tuple[float, float, float]:
        """(sum, sum of squares, minimum) over all elements, in float64 and block by block."""
        total, squares, smallest = 0.0, 0.0, float("inf")
        for rows in row_blocks(*self.shape):
            block = self.rows(rows, torch.float64)
            total += float(block.sum())
            squares += float(block.square().sum())
            smallest = min(smallest, float(block.min()))
        return total, squares, smallest
