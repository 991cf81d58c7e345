"""importance_config.json: what a map is, and of every tensor in its files the name, shape, dtype and checksum.

Reading trusts nothing: every value is checked for type and range before anything else looks at it, and a digest over the whole
content tells a file that was changed from one that was written.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from alora_trainer.artefact.files import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    CONFIG_FILE,
    REFERENCE_FILE,
    is_omega_file,
    is_ours,
    read_json,
    shown,
    write_json,
)
from alora_trainer.errors import ALoRAError
from alora_trainer.importance.kinds.formats import storage_format
from alora_trainer.importance.kinds.kind import Importance
from alora_trainer.importance.origin import ImportanceInfo
from alora_trainer.weights.reference import Stack

SCHEMA = 2

_LARGEST_SIDE = 1 << 31
_LONGEST_TEXT = 2000
_INFO_TYPES: Mapping[str, tuple[type, ...]] = {
    "base_model": (str,),
    "base_revision": (str,),
    "estimator": (str,),
    "xi": (int, float),
    "steps": (int,),
    "tokens": (int,),
    "optimizer": (str,),
    "learning_rate": (int, float),
    "seed": (int,),
    "data": (dict,),
    "license": (str,),
    "cost": (dict,),
    "versions": (dict,),
    "earlier_tasks": (list,),
}
_REFERENCE_DTYPES = ("float64", "float32", "bfloat16", "float16")
_NEVER_NONE = ("steps", "tokens", "data", "cost", "versions", "earlier_tasks")


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file; `shape` as stored, `dtype` as torch calls it, `sha256` of its bytes."""

    file: str
    key: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True)
class WeightEntry:
    """One weight: (out_features, in_features), the scaling of theta*'s adapter (None where the weight itself was tuned), a
    few elements of the base weight, and for one of a stack of experts where its factors lie."""

    shape: tuple[int, int]
    scaling: float | None
    base_sample: list[float] | None
    stack: Stack | None = None


@dataclass(frozen=True)
class MapConfig:
    """The content of an importance_config.json.

    Attributes:
        storage: the map's first storage format, the one it was recorded or converted to.
        info: provenance.
        layer_norms: ``||Omega_l||_2`` by weight name.
        weights: every weight by name.
        formats: storage format -> weight name -> part -> where it is.
        adapter: theta*'s tensors by their key in the adapter's file; none where the weights themselves were tuned.
        adapter_settings: digest of what the adapter's configuration says (`adapter_file.settings_digest`).
        reference: theta* by weight name, where the weights themselves were tuned.
        files: bytes of every file but the config and the card.
    """

    storage: str
    info: ImportanceInfo
    layer_norms: dict[str, float]
    weights: dict[str, WeightEntry]
    formats: dict[str, dict[str, dict[str, TensorEntry]]]
    adapter: dict[str, TensorEntry]
    adapter_settings: str | None
    reference: dict[str, TensorEntry]
    files: dict[str, int]

    @property
    def is_full(self) -> bool:
        """Whether theta* is the weights themselves, and not an adapter on them."""
        return bool(self.reference)

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


def write_config(config: MapConfig, folder: Path) -> None:
    """Write `config` into `folder`."""
    content: dict[str, Any] = {
        "schema_version": SCHEMA,
        "storage": config.storage,
        **_printable(asdict(config.info)),
        "layer_norms": config.layer_norms,
        "tensors": {name: asdict(weight) for name, weight in config.weights.items()},
        "formats": {
            storage: {
                "parameters": storage_format(storage).parameters(),
                "parts": {
                    name: {part: asdict(entry) for part, entry in parts.items()} for name, parts in weights.items()
                },
            }
            for storage, weights in config.formats.items()
        },
        "files": config.files,
    }
    if config.is_full:
        content["reference"] = {name: asdict(entry) for name, entry in config.reference.items()}
    else:
        content["adapter"] = {
            "settings_sha256": config.adapter_settings,
            "tensors": {key: asdict(entry) for key, entry in config.adapter.items()},
        }
    write_json(folder / CONFIG_FILE, content | {"sha256": _digest(content)})


def _printable(value: Any) -> Any:
    """Plain data as reading accepts it: no control characters, no endless texts."""
    if isinstance(value, Mapping):
        return {_printable(str(key)): _printable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_printable(item) for item in value]
    if isinstance(value, str):
        return "".join(character if character.isprintable() else " " for character in value)[:_LONGEST_TEXT]
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def read_config(folder: Path) -> MapConfig:
    """Read and check the config in `folder`.

    Raises:
        ALoRAError: it is missing, damaged, changed after it was written, or of a schema or format that this version does not
            know.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ALoRAError(f"{folder} holds no importance map: {CONFIG_FILE} is missing (was it written to the end?)")
    content = read_json(path)
    try:
        schema = content["schema_version"]
        if schema != SCHEMA:
            older = isinstance(schema, int) and schema < SCHEMA
            advice = (
                "it was written before the first release: record the map again" if older else "update alora-trainer"
            )
            raise ALoRAError(f"{path} has schema {shown(schema)}, and this version reads {SCHEMA}: {advice}")
        if _digest({key: value for key, value in content.items() if key != "sha256"}) != content["sha256"]:
            raise ALoRAError(
                f"{path} does not match its own checksum: it was changed by hand or damaged; fetch it again"
            )
        return _parse(content)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, ALoRAError):
            raise
        raise ALoRAError(
            f"{path} is damaged ({type(error).__name__}: {str(error)[:200]}): fetch or record the map again"
        ) from error


def _parse(content: Mapping[str, Any]) -> MapConfig:
    weights = {_text(name): _weight(entry) for name, entry in content["tensors"].items()}
    _demand(bool(weights), "it has no weights")
    formats = {name: _format(name, entry, weights) for name, entry in content["formats"].items()}
    files = {file: _whole(size, "a file's size") for file, size in content["files"].items()}
    _demand(all(is_ours(file) for file in files), "a file is none of an importance map")
    full = "reference" in content
    _demand(full != ("adapter" in content), "theta* is not one of an adapter and the weights themselves")
    stated = content["reference"] if full else content["adapter"]["tensors"]
    theta = {key: _tensor(entry) for key, entry in stated.items()}
    config = MapConfig(
        storage=content["storage"],
        info=_info(content),
        layer_norms={name: float(norm) for name, norm in content["layer_norms"].items()},
        weights=weights,
        formats=formats,
        adapter={} if full else theta,
        adapter_settings=None if full else _text(content["adapter"]["settings_sha256"]),
        reference=theta if full else {},
        files=files,
    )
    _demand(config.storage in formats, f"Omega is not there in its first format {shown(config.storage)}")
    _check_theta(config)
    _demand(set(config.layer_norms) == set(weights), "layer_norms names other weights")
    entries = [part for parts in formats.values() for weight in parts.values() for part in weight.values()]
    _demand(all(is_omega_file(entry.file) for entry in entries), "a file with Omega has another name")
    _demand(all(entry.file in files for entry in entries), "a file with Omega is not listed")
    places = [(entry.file, entry.key) for entry in entries]
    _demand(len(set(places)) == len(places), "two parts are one tensor")
    return config


def _check_theta(config: MapConfig) -> None:
    """Raise ValueError unless what the config says of theta* fits its weights."""
    scaled = [weight.scaling is not None for weight in config.weights.values()]
    if not config.is_full:
        _demand({ADAPTER_FILE, ADAPTER_CONFIG_FILE} <= set(config.files), "the adapter's files are not listed")
        _demand(all(scaled), "a weight has no scaling")
        return
    _demand(REFERENCE_FILE in config.files, "the reference's file is not listed")
    _demand(not any(scaled), "a weight that was tuned itself has a scaling")
    _demand(set(config.reference) == set(config.weights), "the reference has other weights")
    for name, entry in config.reference.items():
        _demand((entry.file, entry.key) == (REFERENCE_FILE, name), "a reference is somewhere else")
        _demand(entry.shape == config.weights[name].shape, "a reference has another shape than its weight")
        _demand(entry.dtype in _REFERENCE_DTYPES, f"a reference is of the type {shown(entry.dtype)}")


def _demand(condition: bool, complaint: str) -> None:
    if not condition:
        raise ValueError(complaint)


def _text(value: Any) -> str:
    """A text that may be shown on a terminal and in a card."""
    _demand(isinstance(value, str) and 0 < len(value) <= _LONGEST_TEXT and value.isprintable(), "a text is none")
    return str(value)


def _whole(value: Any, what: str, largest: int = 1 << 62) -> int:
    _demand(type(value) is int and 0 <= value <= largest, f"{what} is no whole number")
    return int(value)


def _weight(entry: Mapping[str, Any]) -> WeightEntry:
    rows, columns = (_whole(side, "a shape", _LARGEST_SIDE) for side in entry["shape"])
    _demand(rows > 0 and columns > 0, "a shape is not positive")
    scaling = None if entry["scaling"] is None else float(entry["scaling"])
    _demand(scaling is None or 0 < abs(scaling) < 1e6, "a scaling is absurd")
    sample = entry["base_sample"]
    if sample is not None:
        sample = [float(number) for number in sample]
        _demand(len(sample) <= 64 and all(map(math.isfinite, sample)), "a sample of the base weights is absurd")
    return WeightEntry((rows, columns), scaling, sample, _stack(entry["stack"]))


def _stack(entry: Mapping[str, Any] | None) -> Stack | None:
    if entry is None:
        return None
    expert, experts = (_whole(entry[key], "an expert", _LARGEST_SIDE) for key in ("expert", "experts"))
    _demand(expert < experts, "an expert is none of its stack")
    return Stack(_text(entry["module"]), expert, experts)


def _tensor(entry: Mapping[str, Any]) -> TensorEntry:
    shape = tuple(_whole(side, "a shape", _LARGEST_SIDE) for side in entry["shape"])
    return TensorEntry(_text(entry["file"]), _text(entry["key"]), _text(entry["dtype"]), shape, _text(entry["sha256"]))


def _format(
    storage: str, entry: Mapping[str, Any], weights: Mapping[str, WeightEntry]
) -> dict[str, dict[str, TensorEntry]]:
    kind = storage_format(storage)
    if entry["parameters"] != kind.parameters():
        raise ALoRAError(
            f"storage format {storage} has unknown parameters {shown(entry['parameters'])}: update alora-trainer"
        )
    _demand(set(entry["parts"]) == set(weights), f"{storage} has other weights")
    return {name: _parts(entry["parts"][name], weight.shape, kind) for name, weight in weights.items()}


def _parts(parts: Mapping[str, Any], shape: tuple[int, int], kind: type[Importance]) -> dict[str, TensorEntry]:
    """The parts of one weight, which must be those that its format has."""
    expected = kind.part_kinds(shape)
    _demand(set(parts) == set(expected), f"a weight has the parts {shown(sorted(parts))} and needs {sorted(expected)}")
    entries = {part: _tensor(parts[part]) for part in expected}
    free = set()
    for part, (dtype, wanted) in expected.items():
        entry = entries[part]
        fits = len(wanted) == len(entry.shape) and all(
            want in (-1, got) for want, got in zip(wanted, entry.shape, strict=True)
        )
        _demand(
            fits and entry.dtype == str(dtype).removeprefix("torch."),
            f"part {part!r} is {shown(entry.dtype)} {shown(list(entry.shape))} and should be {dtype} {list(wanted)}",
        )
        free |= {got for want, got in zip(wanted, entry.shape, strict=True) if want == -1}
    _demand(len(free) <= 1 and all(0 < size <= min(shape) for size in free), "the numbers of components do not fit")
    return entries


def _info(content: Mapping[str, Any]) -> ImportanceInfo:
    values = {}
    for item in fields(ImportanceInfo):
        value = content[item.name]
        if value is not None or item.name in _NEVER_NONE:
            right = isinstance(value, _INFO_TYPES[item.name]) and not isinstance(value, bool)
            _demand(right, f"{item.name} is a {type(value).__name__}")
            _check_plain(value)
        values[item.name] = value
    return ImportanceInfo(**values)


def _check_plain(value: Any) -> None:
    if isinstance(value, str):
        _demand(len(value) <= _LONGEST_TEXT and value.isprintable(), "a text is none")
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_plain(key)
            _check_plain(item)
    elif isinstance(value, list):
        for item in value:
            _check_plain(item)
