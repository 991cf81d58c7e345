"""The ways to compute one weight's penalty, and the choice among them.

in_basis:  bases times thin factors; for importance in a basis
gram:      Gram matrices of thin factors; for an Omega that is kept as such
triton:    one fused kernel launch; CUDA
blocked:   torch, block by block of rows; any device, any format, any dtype
dense:     autograd through the whole difference; for tests and comparisons, never chosen by itself

A further one is a `Backend` in a file of its own, and ``BACKENDS.register(name, backend)``.
"""

from __future__ import annotations

import torch

from alora_trainer.basics.registry import Registry
from alora_trainer.errors import ALoRAError
from alora_trainer.importance.kinds.kind import Importance
from alora_trainer.penalty.backends.backend import Backend
from alora_trainer.penalty.backends.blocked import BLOCKED
from alora_trainer.penalty.backends.dense import DENSE
from alora_trainer.penalty.backends.fused import TRITON
from alora_trainer.penalty.backends.gram import GRAM
from alora_trainer.penalty.backends.in_basis import IN_BASIS

BACKENDS: Registry[Backend] = Registry("penalty backend")
for _backend in (IN_BASIS, GRAM, TRITON, BLOCKED, DENSE):
    BACKENDS.register(_backend.name, _backend)


def choose(
    importance: Importance,
    device: torch.device | str,
    forced: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Backend:
    """The backend for one weight.

    Args:
        importance: of the weight, wherever it is.
        device: where its factors are.
        forced: a name in `BACKENDS`, or None for the one that is preferred among those that fit.
        dtype: that of the computation.

    Raises:
        ALoRAError: the forced backend is unknown, or does not fit the importance, the device or the dtype; no backend fits.
    """
    device = torch.device(device)
    if forced is not None:
        backend = BACKENDS.find(forced, "backend")
        misfit = backend.misfit(importance, device, dtype)
        if misfit is not None:
            raise ALoRAError(f"penalty backend {forced!r} does not fit: {misfit}; leave the choice open (backend=None)")
        return backend
    preferred = [backend for backend in BACKENDS.values() if backend.is_preferred_on(device)]
    for backend in sorted(preferred, key=lambda backend: backend.preference or 0):
        if backend.misfit(importance, device, dtype) is None:
            return backend
    raise ALoRAError(
        f"no penalty backend computes importance of the format {importance.format} on {device.type}: install the package that "
        "brings one, or convert the map to another format"
    )
