"""importance_config.json: what a map is, and of every tensor in its files the name, shape, dtype and checksum.

Reading trusts nothing: every value is checked for type and range before anything else looks at it, and a digest over the whole
content tells a file that was changed from one that was written.
"""

from __future__ import annotations

import hashlib
import json
import numbers
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from alora_trainer.artefact.entries import (
    LARGEST_SIDE,
    LONGEST_TEXT,
    MapConfig,
    TensorEntry,
    ThetaEntries,
    WeightEntry,
    check_plain,
    checked_number,
    checked_size,
    checked_tensor,
    checked_text,
    demand,
)
from alora_trainer.artefact.files import CONFIG_FILE, check_inside, is_omega_file, is_ours, read_json, shown, write_json
from alora_trainer.artefact.theta_files import THETA_FILES
from alora_trainer.errors import ALoRAError
from alora_trainer.importance.kinds.elementwise import ELEMENTWISE
from alora_trainer.importance.kinds.formats import KINDS, storage_format
from alora_trainer.importance.kinds.kind import Importance
from alora_trainer.importance.origin import ImportanceInfo
from alora_trainer.weights.reference import Stack
from alora_trainer.weights.theta import BaseTheta

# A map is written in the oldest schema that can say it, so that older versions go on reading what they could.
# 3: weights share tensors, or theta* is the base weights.
OLDEST, NEWEST = 2, 3

_INFO_TYPES: Mapping[str, tuple[type, ...]] = {
    "base_model": (str,),
    "base_revision": (str,),
    "estimator": (str,),
    "xi": (int, float),
    "labels": (str,),
    "draws": (int,),
    "xi_share": (int, float),
    "basis": (str,),
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
# Facts that maps say only where they have them, and that older ones never had.
_MAY_BE_MISSING = ("labels", "draws", "xi_share", "basis")
_NEVER_NONE = ("steps", "tokens", "data", "cost", "versions", "earlier_tasks")


def write_config(config: MapConfig, folder: Path) -> None:
    """Write `config` into `folder`.

    Raises:
        ALoRAError: a fact in it is of another kind than reading takes, so that nobody could read the map.
    """
    content: dict[str, Any] = {
        "schema_version": _schema(config),
        "kind": config.kind,
        "storage": config.storage,
        **_printable(_stated(config.info)),
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
    if config.kept_trace:
        content["kept_trace"] = dict(config.kept_trace)
    files = THETA_FILES[config.theta.type]
    content[files.section] = files.section_content(config.theta)
    try:
        _parse(content)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise ALoRAError(f"the importance map cannot be saved, as nobody could read it: {error}") from error
    write_json(folder / CONFIG_FILE, content | {"sha256": _digest(content)})


def _schema(config: MapConfig) -> int:
    return 3 if config.theta.type is BaseTheta or config.shares_tensors else OLDEST


def _stated(info: ImportanceInfo) -> dict[str, Any]:
    facts = asdict(info)
    return {name: value for name, value in facts.items() if value is not None or name not in _MAY_BE_MISSING}


def _printable(value: Any) -> Any:
    """Plain data as reading accepts it: no control characters, no endless texts."""
    if isinstance(value, Mapping):
        return {_printable(str(key)): _printable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_printable(item) for item in value]
    if isinstance(value, str):
        return "".join(character if character.isprintable() else " " for character in value)[:LONGEST_TEXT]
    if isinstance(value, numbers.Number) and not isinstance(value, (int, float)):  # NumPy's, say
        return int(value) if isinstance(value, numbers.Integral) else float(value)  # type: ignore[arg-type]
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
        below = sorted(folder.glob(f"*/map/{CONFIG_FILE}"))  # as a run has them
        where = f"there is one in {below[0].parent}" if below else "was it written to the end?"
        raise ALoRAError(f"{folder} holds no importance map: {CONFIG_FILE} is missing ({where})")
    content = read_json(check_inside(folder, CONFIG_FILE))
    try:
        schema = content["schema_version"]
        if type(schema) is not int or not OLDEST <= schema <= NEWEST:
            older = isinstance(schema, int) and schema < OLDEST
            advice = (
                "it was written before the first release: record the map again" if older else "update alora-trainer"
            )
            raise ALoRAError(
                f"{path} has schema {shown(schema)}, and this version reads {OLDEST} to {NEWEST}: {advice}"
            )
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
    kind = content.get("kind", ELEMENTWISE)  # what every map was before there were kinds
    if kind not in KINDS:
        raise ALoRAError(f"the importance is of the kind {shown(kind)}, which is unknown: update alora-trainer")
    weights = {checked_text(name): _weight(entry) for name, entry in content["tensors"].items()}
    demand(bool(weights), "it has no weights")
    formats = {name: _format(name, kind, entry, weights) for name, entry in content["formats"].items()}
    files = {file: checked_size(size, "a file's size") for file, size in content["files"].items()}
    demand(all(is_ours(file) for file in files), "a file is none of an importance map")
    config = MapConfig(
        kind=kind,
        storage=content["storage"],
        info=_info(content),
        layer_norms={name: checked_number(norm, "a norm", 0) for name, norm in content["layer_norms"].items()},
        weights=weights,
        formats=formats,
        theta=_theta(content),
        files=files,
        kept_trace=_kept_trace(content.get("kept_trace", {})),
    )
    demand(config.storage in formats, f"Omega is not there in its first format {shown(config.storage)}")
    THETA_FILES[config.theta.type].check(config)
    demand(set(config.layer_norms) == set(weights), "layer_norms names other weights")
    entries = [part for parts in formats.values() for weight in parts.values() for part in weight.values()]
    demand(all(is_omega_file(entry.file) for entry in entries), "a file with Omega has another name")
    demand(all(entry.file in files for entry in entries), "a file with Omega is not listed")
    _check_shared(formats)
    demand(_schema(config) <= content["schema_version"], "it says more than a map of its schema can")
    return config


def _check_shared(formats: Mapping[str, Mapping[str, Mapping[str, TensorEntry]]]) -> None:
    """Two weights may share a tensor of one format that is the same part of both, and that their format shares at all."""
    met: dict[tuple[str, str], tuple[str, str, TensorEntry]] = {}
    for storage, weights in formats.items():
        for name, parts in weights.items():
            for part, entry in parts.items():
                there = met.setdefault(entry.place, (storage, part, entry))
                if there[2] is entry:
                    continue
                shared = f"two parts are one tensor: {shown(name)} has its {part!r} where another weight"
                demand(there[:2] == (storage, part), f"{shared} has its {there[1]!r} as {there[0]}")
                demand(part in storage_format(storage).shareable, f"{shared} has it, and {storage} shares none")
                demand(there[2] == entry, f"{shared} has it, and they differ in dtype, shape or checksum")


def _kept_trace(shares: Mapping[str, Any]) -> dict[str, float]:
    found = {side: checked_number(share, "a share of the trace", 0) for side, share in shares.items()}
    demand(set(found) <= {"outputs", "inputs"}, "the trace has other sides than outputs and inputs")
    demand(all(share <= 1 for share in found.values()), "a share of the trace is more than all of it")
    return found


def _theta(content: Mapping[str, Any]) -> ThetaEntries:
    stated = [files for files in THETA_FILES.values() if files.section in content]
    demand(len(stated) == 1, "theta* is not one of an adapter and the weights themselves")
    return stated[0].parse_section(content[stated[0].section])


def _weight(entry: Mapping[str, Any]) -> WeightEntry:
    rows, columns = (checked_size(side, "a shape", LARGEST_SIDE) for side in entry["shape"])
    demand(rows > 0 and columns > 0, "a shape is not positive")
    scaling = None if entry["scaling"] is None else checked_number(entry["scaling"], "a scaling")
    demand(scaling is None or 0 < abs(scaling) < 1e6, "a scaling is absurd")
    sample = entry["base_sample"]
    if sample is not None:
        sample = [checked_number(number, "a base weight") for number in sample]
        demand(len(sample) <= 64, "a sample of the base weights is absurd")
    return WeightEntry((rows, columns), scaling, sample, _stack(entry["stack"]))


def _stack(entry: Mapping[str, Any] | None) -> Stack | None:
    if entry is None:
        return None
    expert, experts = (checked_size(entry[key], "an expert", LARGEST_SIDE) for key in ("expert", "experts"))
    demand(expert < experts, "an expert is none of its stack")
    return Stack(checked_text(entry["module"]), expert, experts)


def _format(
    storage: str, kind: str, entry: Mapping[str, Any], weights: Mapping[str, WeightEntry]
) -> dict[str, dict[str, TensorEntry]]:
    format = storage_format(storage)
    demand(format.kind == kind, f"{storage} is no format of {kind} importance")
    if entry["parameters"] != format.parameters():
        raise ALoRAError(
            f"storage format {storage} has unknown parameters {shown(entry['parameters'])}: update alora-trainer"
        )
    demand(set(entry["parts"]) == set(weights), f"{storage} has other weights")
    return {name: _parts(entry["parts"][name], weight.shape, format) for name, weight in weights.items()}


def _parts(parts: Mapping[str, Any], shape: tuple[int, int], format: type[Importance]) -> dict[str, TensorEntry]:
    """The parts of one weight, which must be those that its format has."""
    expected = format.part_types(shape)
    demand(set(parts) == set(expected), f"a weight has the parts {shown(sorted(parts))} and needs {sorted(expected)}")
    entries = {part: checked_tensor(parts[part]) for part in expected}
    for part, (dtype, wanted) in expected.items():
        entry = entries[part]
        fits = len(wanted) == len(entry.shape) and all(
            want in (-1, got) for want, got in zip(wanted, entry.shape, strict=True)
        )
        demand(
            fits and entry.dtype == str(dtype).removeprefix("torch."),
            f"part {part!r} is {shown(entry.dtype)} {shown(list(entry.shape))} and should be {dtype} {list(wanted)}",
        )
    format.check_free_sizes(shape, {part: entry.shape for part, entry in entries.items()})
    return entries


def _info(content: Mapping[str, Any]) -> ImportanceInfo:
    values: dict[str, Any] = {}
    for item in fields(ImportanceInfo):
        value = content.get(item.name) if item.name in _MAY_BE_MISSING else content[item.name]
        if value is not None or item.name in _NEVER_NONE:
            right = isinstance(value, _INFO_TYPES[item.name]) and not isinstance(value, bool)
            demand(right, f"{item.name} is a {type(value).__name__}")
            check_plain(value)
        values[item.name] = value
    for name in ("steps", "tokens"):
        checked_size(values[name], name)
    for name in ("seconds", "peak_bytes"):
        if name in values["cost"]:
            checked_number(values["cost"][name], f"cost.{name}", 0)
    demand(all(isinstance(task, dict) for task in values["earlier_tasks"]), "one of earlier_tasks is no object")
    demand(all(isinstance(version, str) for version in values["versions"].values()), "one of versions is no text")
    return ImportanceInfo(**values)
