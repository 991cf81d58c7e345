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
from alora_trainer.importance.kinds.formats import KINDS
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
    omega = {name: importance.stored(name).shuffled(_generator(f"{seed}:{name}")) for name in importance}
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
    """``value I``, which the penalty never needs to write out."""
    stored = importance.stored(name)
    return KINDS.find(stored.kind).uniform(stored.shape, value)


def _generator(key: str) -> torch.Generator:
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1)


def _with_omega(importance: Values, omega: Mapping[str, Importance], what: str) -> Values:
    info = replace(importance.info, estimator=f"{what} (control, from {importance.info.estimator})")
    return importance.with_omega(omega, info=info)
