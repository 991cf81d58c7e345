"""What a recording along another map's directions holds, and the map that comes out of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch

from alora_trainer.artefact.importance_map import as_map
from alora_trainer.importance.kinds.sharing import total_bytes
from alora_trainer.importance.recording.recorder import checked_bases
from alora_trainer.importance.recording.rotation import ekfac_along, rotated_shape
from alora_trainer.weights.adapted import AdaptedWeight


class AlongABasis:
    """Bytes of a path integral that is kept in the directions of a map (`alora.basis`).

    Args:
        place: the map's folder or Hub id. It is read, as the recording will read it.
        weights: those that are recorded.

    Raises:
        ALoRAError: there is no map at that place, or it has no directions for one of the weights.
    """

    def __init__(self, place: str, weights: Sequence[AdaptedWeight]) -> None:
        importance = as_map(place)
        stored = {weight.name: importance.stored(weight.name) for weight in weights if weight.name in importance}
        self._bases = checked_bases(weights, stored)

    @cached_property
    def path_bytes(self) -> int:
        """w' in float32: (k + 1)(h + 1) numbers for a weight of k kept directions of outputs and h of inputs."""
        return 4 * sum(math.prod(rotated_shape(basis)) for basis in self._bases.values())

    @cached_property
    def directions_bytes(self) -> int:
        """The vectors (m, k) and (n, h) that every weight's steps are turned by, in float32."""
        sizes = [zip(basis.shape, basis.kept, strict=True) for basis in self._bases.values()]
        return 4 * sum(size * kept for weight in sizes for size, kept in weight)

    @cached_property
    def map_bytes(self) -> int:
        """The recorded importance: Omega' in float32 and the given directions, what several weights share once."""
        return total_bytes(ekfac_along(basis, torch.empty(rotated_shape(basis))) for basis in self._bases.values())
