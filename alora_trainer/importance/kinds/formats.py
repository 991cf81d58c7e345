"""."""

from __future__ import annotations

import torch

from alora_trainer.basics.registry import Registry
from alora_trainer.importance.kinds.elementwise import DenseOmega, DoubleOmega, HalfOmega, LogarithmicOmega
from alora_trainer.importance.kinds.factored import FactoredOmega
from alora_trainer.importance.kinds.kind import Importance

FORMATS: Registry[type[Importance]] = Registry("storage format")
for _format in (DenseOmega, HalfOmega, LogarithmicOmega, FactoredOmega, DoubleOmega):
    FORMATS.register(_format.format, _format)


def storage_format(name: str) -> type[Importance]:
    """The format called `name`.

    Raises:
        ALoRAError: there is none of that name.
    """
    return FORMATS.find(name, "storage")


def store(omega: torch.Tensor, format_name: str | None = None) -> Importance:
    """Keep a dense Omega (m, n) in a format; by default as exactly as its dtype is (float32, or float64)."""
    if format_name is None:
        format_name = "float64" if omega.dtype == torch.float64 else "float32"
    return storage_format(format_name).encode(omega)
