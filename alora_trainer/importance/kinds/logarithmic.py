"""Omega as one byte an element: the logarithm of every value, in steps that a block of a row has in common."""

from __future__ import annotations

import torch

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.kinds.elementwise import CodedElements, Elementwise, all_within, matrix_shape
from alora_trainer.importance.kinds.kind import PartType
from alora_trainer.weights.row_blocks import row_blocks

# Elements of a row that share one pair of scales.
QUANTIZATION_BLOCK = 128
_LEVELS = 254
# Logarithms that float32 numbers have, and the widest step between 254 levels of them.
_LOWEST, _HIGHEST, _WIDEST_STEP = -150.0, 128.0, 278.0 / 254


class LogarithmicOmega(Elementwise):
    """1 byte an element and 8 bytes for each `QUANTIZATION_BLOCK` elements of a row.

    A block's non-zero values are kept as ``2**(low + step * (code - 1))`` with codes 1..255 spread evenly over the block's own
    range of logarithms; code 0 is zero. A range of R octaves gives a relative error of ``2**(R / 508) - 1`` at most: 2 %
    for R = 15.
    """

    format = "log8"

    @classmethod
    def encode(cls, omega: torch.Tensor) -> Elementwise:
        shape = matrix_shape(omega)
        codes = torch.empty(shape, dtype=torch.uint8, device=omega.device)
        scales = torch.empty((shape[0], _blocks(shape[1]), 2), dtype=torch.float32, device=omega.device)
        for rows in row_blocks(*shape):
            codes[rows], scales[rows] = _quantize(omega[rows].float())
        return cls(shape, {"codes": codes, "scales": scales})

    @classmethod
    def part_types(cls, shape: tuple[int, int]) -> dict[str, PartType]:
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

    @property
    def coded_elements(self) -> CodedElements:
        return CodedElements(self.parts["codes"], self.parts["scales"], QUANTIZATION_BLOCK)

    def check_parts(self, name: str) -> None:
        scales = self.parts["scales"]
        for rows in row_blocks(scales.shape[0], max(scales.shape[1] * 2, 1)):
            low, step = scales[rows].unbind(-1)
            if not all_within(low, _LOWEST, _HIGHEST) or not all_within(step, 0.0, _WIDEST_STEP):
                raise ALoRAError(f"the importance of {name} has absurd scales: the map is damaged, record it again")


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
