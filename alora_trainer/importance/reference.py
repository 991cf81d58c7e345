"""theta*: the weights at which importance was measured, and which the penalty holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Reference:
    """theta* of one adapted weight, ``W0 + scaling * b @ a``: a (r, n), b (m, r)."""

    a: torch.Tensor
    b: torch.Tensor
    scaling: float

    @property
    def shape(self) -> tuple[int, int]:
        return self.b.shape[0], self.a.shape[1]


@dataclass(frozen=True)
class FullReference:
    """theta* of one weight that was tuned itself: the matrix (m, n), in the layout that the model stores."""

    weight: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.weight.shape
        return rows, columns
