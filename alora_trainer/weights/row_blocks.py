"""Blocks of rows of a matrix, small enough to stay in a processor's cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch

# Elements in one block. 1 MB in float32 fits the second-level cache of the processors we measured; a GPU has a larger cache
# and pays for every launch.
BLOCK_ELEMENTS = 1 << 18
BLOCK_ELEMENTS_GPU = 1 << 22


def block_rows(rows: int, columns: int, device: torch.device | None = None) -> int:
    """How many rows of a (rows, columns) matrix make a block: at most `BLOCK_ELEMENTS` elements, one row at least."""
    elements = BLOCK_ELEMENTS_GPU if device is not None and device.type == "cuda" else BLOCK_ELEMENTS
    return min(rows, max(1, elements // max(columns, 1)))


def row_blocks(rows: int, columns: int, device: torch.device | None = None) -> Iterator[slice]:
    """Slices that cut a (rows, columns) matrix into blocks of rows."""
    height = block_rows(rows, columns, device)
    for start in range(0, rows, height):
        yield slice(start, min(start + height, rows))
