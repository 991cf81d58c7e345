"""Omega as one plain number an element: float32, bfloat16, float64."""

from __future__ import annotations

from typing import ClassVar

import torch

from alora_trainer.importance.kinds.elementwise import CodedElements, Elementwise, matrix_shape
from alora_trainer.importance.kinds.kind import PartType


class _Dense(Elementwise):
    dtype: ClassVar[torch.dtype]

    @classmethod
    def encode(cls, omega: torch.Tensor) -> Elementwise:
        return cls(matrix_shape(omega), {"": omega.to(cls.dtype)})

    @classmethod
    def part_types(cls, shape: tuple[int, int]) -> dict[str, PartType]:
        return {"": (cls.dtype, shape)}

    @property
    def coded_elements(self) -> CodedElements:
        return CodedElements(self.parts[""])

    def rows(self, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        return self.parts[""][rows].to(dtype)


class DenseOmega(_Dense):
    """4 bytes an element, exact."""

    format = "float32"
    dtype = torch.float32


class DoubleOmega(_Dense):
    """8 bytes an element: for adapters in float64."""

    format = "float64"
    listed = False
    dtype = torch.float64

    def dense(self) -> torch.Tensor:
        return self.parts[""]


class HalfOmega(_Dense):
    """2 bytes an element, 8 bits of mantissa: a relative error of 0.4 % at most."""

    format = "bfloat16"
    dtype = torch.bfloat16
