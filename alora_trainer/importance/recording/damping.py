"""Eq. 15's xi: a number, or a share of how far the weight itself has moved.

An absolute xi means something only beside the squared movements that it is added to, and these differ by orders of magnitude
between models, learning rates and lengths of training: where xi is far above them all, ``Omega = max(w, 0) / xi`` and the
denominator says nothing. A share of the weight's own mean squared movement is at every scale the same.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch

from alora_trainer.errors import ALoRAError
from alora_trainer.weights.row_blocks import row_blocks
from alora_trainer.weights.steps import Factors, Matrix

_PERCENT = re.compile(r"\s*(?P<number>[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*%\s*")


@dataclass(frozen=True)
class Damping:
    """What is added to ``Delta**2``; one of both is None.

    Attributes:
        value: xi itself, for all weights.
        share: of the mean of ``Delta**2`` over the weight's elements.
    """

    value: float | None = None
    share: float | None = None

    @classmethod
    def parse(cls, xi: float | str) -> Damping:
        """What a setting says: a number is xi itself, and a text such as "10%" that share of the mean ``Delta**2``.

        Raises:
            ALoRAError: it is neither, or not positive.
        """
        percent = _PERCENT.fullmatch(xi) if isinstance(xi, str) else None
        try:
            number = float(percent["number"] if percent else xi)
        except (TypeError, ValueError):
            number = math.nan
        if isinstance(xi, bool) or not (math.isfinite(number) and number > 0):
            raise ALoRAError(
                f"xi={xi!r} must be a positive number (the paper's order of magnitude is 1e-3), or a share of the weight's "
                "mean squared movement, such as '10%'"
            )
        return cls(share=number / 100) if percent else cls(value=number)

    @property
    def setting(self) -> float | str:
        """The same as a setting, each in one spelling."""
        return f"{100 * self.share:g}%" if self.share is not None else self.value  # type: ignore[return-value]

    def of(self, total: Matrix, shape: tuple[int, int]) -> float:
        """xi of a weight (m, n) that has moved by `total`; 0 for a share, where it stands as it stood at the start."""
        if self.share is None:
            assert self.value is not None
            return self.value
        return self.share * (_squared_norm(total) / math.prod(shape))


def _squared_norm(matrix: Matrix) -> float:
    """``||matrix||_F**2`` in float64: of thin factors from their small Gram matrices, of a matrix by blocks of rows."""
    if isinstance(matrix, Factors):
        return matrix.norm() ** 2
    blocks = row_blocks(matrix.shape[0], matrix.shape[1], matrix.device)
    return sum(float(torch.linalg.vector_norm(matrix[rows], dtype=torch.float64)) ** 2 for rows in blocks)
