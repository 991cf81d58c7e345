"""Importance made on the device, in every format and in a basis: what is timed costs the same whatever the numbers are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from penalty import made_omega

from alora_trainer.artefact.importance_map import ImportanceMap
from alora_trainer.importance.kinds.ekfac import OMEGA, EkfacOmega
from alora_trainer.importance.kinds.in_basis import INPUT_VECTORS, OUTPUT_VECTORS
from alora_trainer.importance.kinds.kind import Importance
from alora_trainer.importance.kinds.kronecker import INPUT_VALUES, OUTPUT_VALUES, KroneckerOmega

Made = Callable[[tuple[int, int]], Importance]
ELEMENTWISE = ("float32", "bfloat16", "log8", "factored")
KEPT = 64
KRONECKER = f"kronecker, {KEPT} directions"


def orthonormal(size: int, count: int, device: str) -> torch.Tensor:
    """(size, count) with orthonormal columns, to float32's rounding."""
    return torch.linalg.qr(torch.randn(size, count, device=device, dtype=torch.float64))[0].float()


def nearly_orthonormal(size: int, count: int, device: str) -> torch.Tensor:
    """The same but for the products of two columns: what is only timed needs no better, and gets it in no time."""
    return torch.randn(size, count, device=device) / size**0.5


def made_kronecker(
    shape: tuple[int, int], keep: int, device: str, vectors_of: Callable[..., torch.Tensor] = orthonormal
) -> KroneckerOmega:
    """With `keep` leading directions on either side (all that there are, at most), and eigenvalues of many sizes."""
    k, h = (min(keep, size) for size in shape)
    vectors = {OUTPUT_VECTORS: vectors_of(shape[0], k, device), INPUT_VECTORS: vectors_of(shape[1], h, device)}
    values = (torch.rand(count + 1, device=device).pow_(4) for count in (k, h))
    return KroneckerOmega(shape, vectors | {OUTPUT_VALUES: next(values), INPUT_VALUES: next(values)})


def made_ekfac(shape: tuple[int, int], keep: int, device: str) -> EkfacOmega:
    """With `keep` leading directions on either side, and an Omega of its own numbers."""
    vectors = {OUTPUT_VECTORS: orthonormal(shape[0], keep, device), INPUT_VECTORS: orthonormal(shape[1], keep, device)}
    return EkfacOmega(shape, vectors | {OMEGA: torch.rand(keep + 1, keep + 1, device=device).pow_(4)})


def all_made(device: str) -> dict[str, Made]:
    """By name: element-wise importance in every format, and a Kronecker product."""
    made: dict[str, Made] = {
        storage: lambda shape, storage=storage: made_omega(shape, storage, device) for storage in ELEMENTWISE
    }
    made[KRONECKER] = lambda shape: timed_kronecker(shape, KEPT, device)
    return made


def timed_kronecker(shape: tuple[int, int], keep: int, device: str) -> KroneckerOmega:
    return made_kronecker(shape, keep, device, nearly_orthonormal)


class MadeMap(ImportanceMap):
    """A map of made importance: one weight of every shape is measured, as all others have numbers of the same distribution."""

    def _measure(self, name: str) -> None:
        of_shape = self.__dict__.setdefault("_of_shape", {})
        shape = self.stored(name).shape
        if shape not in of_shape:
            super()._measure(name)
            of_shape[shape] = self._norms[name], self._traces[name]
        self._norms[name], self._traces[name] = of_shape[shape]
