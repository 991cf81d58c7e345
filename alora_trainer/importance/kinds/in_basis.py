"""Importance in coordinates given by two orthonormal bases: what Kronecker, EK-FAC and covariance importance have in common.

    R = sum_ij Omega_ij |U_i' D V_j|**2

with U_i a direction of the weight's outputs and V_j one of its inputs. Each basis may be kept in part: k (h) leading
directions, and all that is orthogonal to them as one more, of m - k (n - h) dimensions, with one number. So Omega has k + 1
rows and h + 1 columns, whatever the weight's size. With the unit vectors for bases it would be element-wise importance.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.kinds.elementwise import all_within
from alora_trainer.importance.kinds.kind import Importance, Measure, PartType
from alora_trainer.weights.row_blocks import row_blocks

OUTPUT_VECTORS, INPUT_VECTORS = "output_vectors", "input_vectors"
# How far the products of kept directions may be from those of orthonormal ones, by the dtype that they are kept in.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 3e-2}


class InBasis(Importance):
    """``R = sum_ij Omega_ij |U_i' D V_j|**2`` for movements D (m, n); the module's text says what the last indices mean.

    A subclass says how Omega is kept. Parts that it may have beside: ``output_vectors`` U (m, k) and ``input_vectors``
    V (n, h), with orthonormal columns; a side without that part keeps no direction.

    Attributes:
        vectors_dtype: what the directions are kept in.
        shareable: parts that another weight may have, too: the same tensor in memory, and once in a file.
    """

    vectors_dtype: ClassVar[torch.dtype] = torch.float32
    shareable = (OUTPUT_VECTORS, INPUT_VECTORS)
    layer_weights = "none"
    lam = 0.001

    @classmethod
    @abstractmethod
    def kept_part_types(cls, shape: tuple[int, int], kept: tuple[int, int]) -> dict[str, PartType]:
        """dtype and shape of every part, where (k, h) directions are kept."""

    @classmethod
    def made_part_types(cls, shape: tuple[int, int]) -> dict[str, PartType]:
        """With all directions kept, as they are unless fewer are asked for."""
        return cls.kept_part_types(shape, shape)

    @classmethod
    def stored_bytes(cls, shape: tuple[int, int], keep: int | None = None, *, inputs_shared: bool = False) -> int:
        """Bytes that the importance of a weight of `shape` takes, in memory and on disk.

        Args:
            shape: (m, n) of the weight.
            keep: directions kept on either side at most; None for all.
            inputs_shared: another weight with the same inputs has `input_vectors` already, and they are counted there.
        """
        kept = shape if keep is None else (min(keep, shape[0]), min(keep, shape[1]))
        types = cls.kept_part_types(shape, kept)
        if inputs_shared:
            types.pop(INPUT_VECTORS, None)
        return sum(math.prod(sizes) * dtype.itemsize for dtype, sizes in types.values())

    @property
    def kept(self) -> tuple[int, int]:
        """(k, h): how many directions are kept on either side."""
        k, h = (self.parts[part].shape[1] if part in self.parts else 0 for part in (OUTPUT_VECTORS, INPUT_VECTORS))
        return k, h

    def output_vectors(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """U (m, k); as it is kept, if no dtype is asked for."""
        return self._vectors(OUTPUT_VECTORS, self.shape[0], dtype)

    def input_vectors(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """V (n, h); as it is kept, if no dtype is asked for."""
        return self._vectors(INPUT_VECTORS, self.shape[1], dtype)

    def _vectors(self, part: str, size: int, dtype: torch.dtype | None) -> torch.Tensor:
        if part in self.parts:
            return self.parts[part].to(dtype)
        dtype = self.vectors_dtype if dtype is None else dtype
        return torch.zeros(size, 0, dtype=dtype, device=next(iter(self.parts.values())).device)

    @abstractmethod
    def omega_rows(self, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        """Rows of Omega (k + 1, h + 1) in `dtype`."""

    @abstractmethod
    def weigh_inputs(self, values: torch.Tensor) -> torch.Tensor:
        """``Omega values``, (k + 1, p), for values (h + 1, p)."""

    @abstractmethod
    def weigh_outputs(self, values: torch.Tensor) -> torch.Tensor:
        """``Omega' values``, (h + 1, p), for values (k + 1, p)."""

    def measure(self) -> Measure:
        (m, n), (k, h) = self.shape, self.kept
        columns = dimensions(h, n)
        trace, squares, least = 0.0, 0.0, math.inf
        for rows in row_blocks(k + 1, h + 1):
            omega = self.omega_rows(rows, torch.float64).cpu()
            shares = dimensions(k, m)[rows, None] * columns
            trace += float((omega * shares).sum())
            squares += float((omega.square() * shares).sum())
            # Of what has no dimensions the number counts, too: it is a stranger's, and none may be negative or NaN.
            least = min(least, float(omega.min()))
        return Measure(trace, math.sqrt(squares) if squares >= 0 else math.nan, least)

    def kept_trace(self) -> tuple[float, float]:
        """How much of the trace is in kept directions of the outputs, and how much in kept directions of the inputs."""
        (m, n), (k, h) = self.shape, self.kept
        columns, of_outputs, of_inputs = dimensions(h, n), 0.0, 0.0
        for rows in row_blocks(k + 1, h + 1):
            traces = self.omega_rows(rows, torch.float64).cpu() * dimensions(k, m)[rows, None] * columns
            of_outputs += float(traces[: max(k - (rows.start or 0), 0)].sum())
            of_inputs += float(traces[:, :h].sum())
        return of_outputs, of_inputs

    def diagonal(self) -> torch.Tensor:
        outputs = _shares(self.output_vectors(torch.float32))
        inputs = _shares(self.input_vectors(torch.float32))
        return outputs @ self.weigh_inputs(inputs.T)

    def apply(self, movement: torch.Tensor) -> torch.Tensor:
        u, v = self.output_vectors(movement.dtype), self.input_vectors(movement.dtype)
        k, h = self.kept
        omega = self.omega_rows(slice(0, k + 1), movement.dtype)
        by_output, by_input = u.T @ movement, movement @ v  # (k, n), (m, h)
        both = u.T @ by_input
        output_only = by_output - both @ v.T
        input_only = by_input - u @ both
        rest = movement - u @ by_output - input_only @ v.T
        kept = u @ ((omega[:k, :h] * both) @ v.T + omega[:k, h:] * output_only)
        return kept + (input_only * omega[k:, :h]) @ v.T + omega[k, h] * rest

    def part_types_as(self, to: type[Importance]) -> dict[str, PartType]:
        return to.kept_part_types(self.shape, self.kept) if issubclass(to, InBasis) else super().part_types_as(to)

    def convert(self, to: type[Importance]) -> Importance:
        """Formats of one kind differ in what they keep the directions in."""
        if to is type(self) or to.kind != self.kind or not issubclass(to, InBasis):
            return super().convert(to)
        vectors = {name: part.to(to.vectors_dtype) for name, part in self.parts.items() if name.endswith("_vectors")}
        return to(self.shape, self.parts | vectors)

    def check_parts(self, name: str) -> None:
        for part in (OUTPUT_VECTORS, INPUT_VECTORS):
            if part in self.parts:
                _check_orthonormal(self.parts[part], f"the {part.replace('_', ' ')} of the importance of {name}")

    @classmethod
    def check_free_sizes(cls, shape: tuple[int, int], found: Mapping[str, tuple[int, ...]]) -> None:
        for side, part in enumerate((OUTPUT_VECTORS, INPUT_VECTORS)):
            if part in found and not 0 <= found[part][1] <= shape[side]:
                raise ValueError(f"{found[part][1]} {part.replace('_', ' ')} of {shape[side]} dimensions")


def dimensions(kept: int, size: int) -> torch.Tensor:
    """Of how many dimensions each of the kept directions speaks, and the rest: (kept + 1,) in float64."""
    dimensions = torch.ones(kept + 1, dtype=torch.float64)
    dimensions[kept] = size - kept
    return dimensions


def _shares(vectors: torch.Tensor) -> torch.Tensor:
    """(d, k + 1): how much of every unit vector lies in each kept direction, and in the rest: squares, that sum to 1."""
    squares = vectors.square()
    return torch.cat([squares, (1 - squares.sum(1, keepdim=True)).clamp_min(0)], dim=1)


def _check_orthonormal(vectors: torch.Tensor, what: str) -> None:
    """Raises ALoRAError unless the columns of `vectors` (d, k) are orthonormal, as nearly as their dtype allows."""
    if vectors.numel() == 0:
        return
    if not all_within(vectors, -2.0, 2.0):
        raise ALoRAError(f"{what} hold NaN, or values that no unit vector has: record it again")
    wide = vectors.double()
    worst = float((wide.T @ wide).sub_(torch.eye(wide.shape[1], dtype=wide.dtype, device=wide.device)).abs().max())
    if worst > TOLERANCE[vectors.dtype]:
        raise ALoRAError(f"{what} are not orthonormal (off by {worst:.2g}): record it again")


def vectors_type(shape: tuple[int, int], side: int, dtype: torch.dtype, kept: int = -1) -> PartType:
    """dtype and shape of the directions of one side (0 outputs, 1 inputs); of a free number, unless `kept` says it."""
    return dtype, (shape[side], kept)
