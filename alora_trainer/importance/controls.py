"""Importance maps that a sceptic compares with: the same theta* and penalty, with what is claimed to matter taken away.

uniform    every element as important as any other: with layer weights of 1, plain L2 regularisation towards theta*
even       every layer as important as it was (its norm is kept, and so is eq. 17's w_l), all elements in it alike
shuffled   the recorded values, put to random places within each layer
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.importance_values import ImportanceValues
from alora_trainer.importance.kinds.factored import FactoredOmega
from alora_trainer.importance.kinds.formats import store
from alora_trainer.importance.kinds.kind import Importance

Values = TypeVar("Values", bound=ImportanceValues)


def uniform(importance: Values, seed: int = 0) -> Values:
    """All importance 1; `seed` is of no effect."""
    return _with_omega(importance, {name: _constant(importance, name, 1.0) for name in importance}, "uniform")


def even(importance: Values, seed: int = 0) -> Values:
    """Each layer's importance spread evenly over its elements, keeping ``||Omega_l||_2``; `seed` is of no effect."""
    norms = importance.layer_norms
    omega = {
        name: _constant(importance, name, norms[name] / math.sqrt(math.prod(importance.stored(name).shape)))
        for name in importance
    }
    return _with_omega(importance, omega, "even")


def shuffled(importance: Values, seed: int = 0) -> Values:
    """Each layer's values in a random order, which `seed` and the layer's name decide; norms and sums stay as they were."""
    omega: dict[str, Importance] = {}
    for name in importance:
        stored = importance.stored(name)
        # A factored Omega has no places to exchange, and its values in another order have no factors.
        kind = "float32" if stored.format == "factored" else stored.format
        omega[name] = store(_permuted(stored.dense(), f"{seed}:{name}"), kind)
    return _with_omega(importance, omega, "shuffled")


CONTROLS: Mapping[str, Callable[[Any, int], Any]] = {
    "uniform": uniform,
    "even": even,
    "shuffled": shuffled,
}


def control_map(name: str, importance: Values, seed: int = 0) -> Values:
    """The control called `name`, made from a recorded map.

    Raises:
        ALoRAError: there is no such control.
    """
    if name not in CONTROLS:
        raise ALoRAError(f"there is no control {name!r}: use one of {', '.join(CONTROLS)}")
    return CONTROLS[name](importance, seed)


def _constant(importance: ImportanceValues, name: str, value: float) -> Importance:
    """A constant matrix as one outer product, which the penalty never needs to write out."""
    rows, columns = importance.stored(name).shape
    return FactoredOmega((rows, columns), {"rows": torch.full((rows, 1), value), "columns": torch.ones(columns, 1)})


def _permuted(omega: torch.Tensor, key: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1)
    return omega.flatten()[torch.randperm(omega.numel(), generator=generator)].view(omega.shape)


def _with_omega(importance: Values, omega: Mapping[str, Importance], what: str) -> Values:
    info = replace(importance.info, estimator=f"{what} (control, from {importance.info.estimator})")
    return importance.with_omega(omega, info=info)
