"""How one weight's Omega is kept: float32, bfloat16, 8-bit logarithmic, or a sum of a few outer products.

Every format is a few plain tensors with names (what a safetensors file holds), and can give any block of rows as dense
numbers; nothing else in the package knows how a format works inside.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.fold import row_blocks

# Elements of a row that share one pair of scales in the 8-bit format.
QUANTIZATION_BLOCK = 128
_LEVELS = 254


class StoredOmega(ABC):
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
    def encode(cls, omega: torch.Tensor) -> StoredOmega:
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

    def to(self, device: torch.device | str) -> StoredOmega:
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


class _Dense(StoredOmega):
    dtype: ClassVar[torch.dtype]

    @classmethod
    def encode(cls, omega: torch.Tensor) -> StoredOmega:
        return cls(_matrix_shape(omega), {"": omega.to(cls.dtype)})

    @classmethod
    def part_kinds(cls, shape: tuple[int, int]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        return {"": (cls.dtype, shape)}

    def rows(self, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        return self.parts[""][rows].to(dtype)


class DenseOmega(_Dense):
    """4 bytes an element, exact."""

    format = "float32"
    dtype = torch.float32


class DoubleOmega(_Dense):
    """8 bytes an element: for adapters in float64."""

    format = "float64"
    dtype = torch.float64

    def dense(self) -> torch.Tensor:
        return self.parts[""]


class HalfOmega(_Dense):
    """2 bytes an element, 8 bits of mantissa: a relative error of 0.4 % at most."""

    format = "bfloat16"
    dtype = torch.bfloat16


class LogarithmicOmega(StoredOmega):
    """1 byte an element and 8 bytes for each `QUANTIZATION_BLOCK` elements of a row.

    A block's non-zero values are kept as ``2**(low + step * (code - 1))`` with codes 1..255 spread evenly over the block's own
    range of logarithms; code 0 is zero. A range of R octaves gives a relative error of ``2**(R / 508) - 1`` at most: 2 %
    for R = 15.
    """

    format = "log8"

    @classmethod
    def encode(cls, omega: torch.Tensor) -> StoredOmega:
        shape = _matrix_shape(omega)
        codes = torch.empty(shape, dtype=torch.uint8, device=omega.device)
        scales = torch.empty((shape[0], _blocks(shape[1]), 2), dtype=torch.float32, device=omega.device)
        for rows in row_blocks(*shape):
            codes[rows], scales[rows] = _quantize(omega[rows].float())
        return cls(shape, {"codes": codes, "scales": scales})

    @classmethod
    def part_kinds(cls, shape: tuple[int, int]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        return {"codes": (torch.uint8, shape), "scales": (torch.float32, (shape[0], _blocks(shape[1]), 2))}

    @classmethod
    def parameters(cls) -> dict[str, int]:
        return {"block": QUANTIZATION_BLOCK}

    def rows(self, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        codes = self.parts["codes"][rows]
        scales = self.parts["scales"][rows].to(dtype)
        low, step = scales[..., :1], scales[..., 1:]
        # One multiplication and one addition for the exponent, and a factor of 0 or 1 made from bytes: a comparison or a
        # choice between two values costs several times as much on a CPU.
        present = codes.clamp(max=1).to(dtype)
        values = _in_blocks(codes.to(dtype)).mul_(step).add_(low - step).exp2_()
        return values.flatten(1)[:, : self.shape[1]].mul_(present)


class FactoredOmega(StoredOmega):
    """``Omega ~ sum_c x_c y_c'`` with non-negative x (m, C) and y (n, C): 4 C (m + n) bytes for m n elements.

    Fitted by minimising the generalised Kullback-Leibler divergence (Lee and Seung 2001), whose solutions keep the sums of
    every row and every column of Omega: what is lost is only how importance is spread within them.
    """

    format = "factored"
    components: ClassVar[int] = 4
    iterations: ClassVar[int] = 60

    @classmethod
    def encode(cls, omega: torch.Tensor) -> StoredOmega:
        from alora_trainer.importance.factorize import factorize

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


FORMATS: dict[str, type[StoredOmega]] = {
    kind.format: kind for kind in (DenseOmega, HalfOmega, LogarithmicOmega, FactoredOmega, DoubleOmega)
}


def storage_format(name: str) -> type[StoredOmega]:
    """The format called `name`.

    Raises:
        ALoRAError: there is none of that name.
    """
    if name not in FORMATS:
        raise ALoRAError(f"storage={str(name)[:40]!r} is unknown: use one of {', '.join(FORMATS)}")
    return FORMATS[name]


def store(omega: torch.Tensor, format_name: str | None = None) -> StoredOmega:
    """Keep a dense Omega (m, n) in a format; by default as exactly as its dtype is (float32, or float64)."""
    if format_name is None:
        format_name = "float64" if omega.dtype == torch.float64 else "float32"
    return storage_format(format_name).encode(omega)


def uniform(shape: tuple[int, int], value: float) -> StoredOmega:
    """An Omega that is `value` throughout, as one outer product."""
    return FactoredOmega(shape, {"rows": torch.full((shape[0], 1), value), "columns": torch.ones(shape[1], 1)})


def _matrix_shape(omega: torch.Tensor) -> tuple[int, int]:
    rows, columns = omega.shape
    return rows, columns


def _blocks(columns: int) -> int:
    return -(-columns // QUANTIZATION_BLOCK)


def _in_blocks(matrix: torch.Tensor) -> torch.Tensor:
    """(m, n) as (m, blocks, QUANTIZATION_BLOCK), padded with zeros."""
    padding = _blocks(matrix.shape[1]) * QUANTIZATION_BLOCK - matrix.shape[1]
    return torch.nn.functional.pad(matrix, (0, padding)).unflatten(1, (-1, QUANTIZATION_BLOCK))


def _quantize(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    blocks = _in_blocks(values)
    positive = blocks > 0
    logarithms = torch.log2(blocks)
    low = torch.where(positive, logarithms, torch.inf).amin(-1, keepdim=True)
    high = torch.where(positive, logarithms, -torch.inf).amax(-1, keepdim=True)
    empty = ~positive.any(-1, keepdim=True)
    low, high = low.masked_fill(empty, 0.0), high.masked_fill(empty, 0.0)
    step = (high - low) / _LEVELS
    levels = torch.where(step > 0, (logarithms - low) / step.clamp_min(1e-30), torch.zeros_like(logarithms)).round() + 1
    codes = torch.where(positive, levels, 0).to(torch.uint8).flatten(1)[:, : values.shape[1]]
    return codes, torch.cat([low, step], dim=-1)
