"""What several weights have in common, kept once: the inputs' directions of q, k and v, say, which multiply the same inputs.

In memory, weights have a part in common where it is one tensor. Whoever makes importance anew weight by weight (reads it,
converts it, moves it to another device) keeps that so by `SharedParts`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping

import torch

from alora_trainer.importance.kinds.kind import Importance


class SharedParts:
    """Parts that were met before, so that a weight made anew gets the same tensors as the one before it."""

    def __init__(self) -> None:
        self._met: dict[Hashable, torch.Tensor] = {}

    def joined(self, importance: Importance, keys: Mapping[str, Hashable]) -> Importance:
        """`importance` with the tensors that were met under the same keys before, in the place of its own.

        Args:
            importance: of one weight.
            keys: by part: what tells its tensor from others; those without one are left as they are.
        """
        parts = {part: self._met.setdefault((part, key), importance.parts[part]) for part, key in keys.items()}
        if all(importance.parts[part] is tensor for part, tensor in parts.items()):
            return importance
        return type(importance)(importance.shape, importance.parts | parts)


def identities(importance: Importance) -> dict[str, Hashable]:
    """For each part that other weights may have, too: where its tensor lies, as long as it is there."""
    return {part: _place(importance.parts[part]) for part in importance.shareable if part in importance.parts}


def _place(tensor: torch.Tensor) -> Hashable:
    return tensor.data_ptr(), tensor.device, tensor.dtype, tuple(tensor.shape), tensor.stride()


def total_bytes(importances: Iterable[Importance]) -> int:
    """Bytes of all of them together, what they have in common counted once."""
    total, met = 0, set()
    for importance in importances:
        places = identities(importance)
        for part, tensor in importance.parts.items():
            if part in places and (part, places[part]) in met:
                continue
            met.add((part, places.get(part)))
            total += tensor.nbytes
    return total
