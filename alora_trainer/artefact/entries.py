"""What importance_config.json says, as dataclasses, and the checks of a stranger's values that they are made of."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from alora_trainer.artefact.files import shown
from alora_trainer.importance.kinds.formats import storage_format
from alora_trainer.importance.origin import ImportanceInfo
from alora_trainer.weights.parameterization import Parameterization
from alora_trainer.weights.reference import Stack
from alora_trainer.weights.theta import Theta

LARGEST_SIDE = 1 << 31
LONGEST_TEXT = 2000


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file; `shape` as stored, `dtype` as torch calls it, `sha256` of its bytes.

    Weights that share a tensor have one and the same entry of it.
    """

    file: str
    key: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str

    @property
    def place(self) -> tuple[str, str]:
        """Where it lies: file and key."""
        return self.file, self.key


@dataclass(frozen=True)
class WeightEntry:
    """One weight: (out_features, in_features), the scaling of theta*'s adapter (None where the weight itself was tuned), a
    few elements of the base weight, and for one of a stack of experts where its factors lie."""

    shape: tuple[int, int]
    scaling: float | None
    base_sample: list[float] | None
    stack: Stack | None = None


@dataclass(frozen=True)
class ThetaEntries:
    """Where theta* is in a map's folder.

    Attributes:
        type: what theta* is, which says how it is kept (`theta_files.THETA_FILES`).
        tensors: an adapter's by their key in its file; the weights themselves by name.
        settings: digest of what an adapter's configuration says (`adapter_config.settings_digest`); None without one.
    """

    type: type[Theta]
    tensors: dict[str, TensorEntry]
    settings: str | None = None


@dataclass(frozen=True)
class MapConfig:
    """The content of an importance_config.json.

    Attributes:
        kind: the kind of importance.
        storage: the map's first storage format, the one it was recorded or converted to.
        info: provenance.
        layer_norms: ``||Omega_l||_2`` by weight name.
        weights: every weight by name.
        formats: storage format -> weight name -> part -> where it is.
        theta: where theta* is.
        files: bytes of every file but the config and the card.
        kept_trace: of importance in a basis, by side ("outputs", "inputs"), the share of all weights' trace that is in kept
            directions; empty where no directions are kept.
    """

    kind: str
    storage: str
    info: ImportanceInfo
    layer_norms: dict[str, float]
    weights: dict[str, WeightEntry]
    formats: dict[str, dict[str, dict[str, TensorEntry]]]
    theta: ThetaEntries
    files: dict[str, int]
    kept_trace: Mapping[str, float] = field(default_factory=dict)

    @property
    def shares_tensors(self) -> bool:
        """Whether weights have a tensor in common."""
        places = [entry.place for weights in self.formats.values() for p in weights.values() for entry in p.values()]
        return len(set(places)) < len(places)

    @property
    def parameterization(self) -> Parameterization:
        """What was trained while importance was recorded: an adapter, or the weights themselves."""
        return self.theta.type.parameterization

    def format_for(self, storage: str | None) -> str:
        """The stored format to read when `storage` is wanted: that one, or the first, to convert from."""
        if storage is not None:
            storage_format(storage)
        return storage if storage in self.formats else self.storage

    def omega_files(self, storage: str, names: Collection[str] | None = None) -> list[str]:
        """The files that hold the weights in `names` (default: all) in a stored format."""
        chosen = self.formats[storage] if names is None else {name: self.formats[storage][name] for name in names}
        return sorted({part.file for parts in chosen.values() for part in parts.values()})

    def format_bytes(self, storage: str) -> int:
        """What Omega takes on disk in a stored format."""
        return sum(self.files[file] for file in self.omega_files(storage))


def described_tensors(
    file: str, types: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], digests: Mapping[str, str]
) -> dict[str, TensorEntry]:
    """The entries of a file's tensors, from their dtypes and shapes and their sha256, all by key."""
    return {
        key: TensorEntry(file, key, str(dtype).removeprefix("torch."), shape, digests[key])
        for key, (dtype, shape) in types.items()
    }


def demand(condition: bool, complaint: str) -> None:
    """Raise ValueError with the complaint unless the condition holds."""
    if not condition:
        raise ValueError(complaint)


def checked_text(value: Any) -> str:
    """A text that may be shown on a terminal and in a card. Raises ValueError."""
    demand(isinstance(value, str) and 0 < len(value) <= LONGEST_TEXT and value.isprintable(), "a text is none")
    return str(value)


def checked_size(value: Any, what: str, largest: int = 1 << 62) -> int:
    """A whole number that is not negative. Raises ValueError."""
    demand(type(value) is int and 0 <= value <= largest, f"{what} is no whole number")
    return int(value)


def checked_number(value: Any, what: str, least: float = -math.inf) -> float:
    """A finite number, which is no truth value and no text. Raises ValueError."""
    right = isinstance(value, (int, float)) and not isinstance(value, bool)
    demand(right and math.isfinite(value) and value >= least, f"{what} is {shown(value)}")
    return float(value)


def check_plain(value: Any) -> None:
    """Look at the texts in plain data: they may be shown on a terminal and in a card. Raises ValueError."""
    if isinstance(value, str):
        demand(len(value) <= LONGEST_TEXT and value.isprintable(), "a text is none")
    elif isinstance(value, dict):
        for key, item in value.items():
            check_plain(key)
            check_plain(item)
    elif isinstance(value, list):
        for item in value:
            check_plain(item)


def checked_tensor(entry: Mapping[str, Any]) -> TensorEntry:
    """One tensor's entry. Raises ValueError, KeyError or TypeError."""
    shape = tuple(checked_size(side, "a shape", LARGEST_SIDE) for side in entry["shape"])
    file, key, dtype, digest = (checked_text(entry[name]) for name in ("file", "key", "dtype", "sha256"))
    return TensorEntry(file, key, dtype, shape, digest)
