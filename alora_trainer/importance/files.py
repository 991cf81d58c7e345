"""The artefact on disk: what a folder or Hub repository with an importance map holds, written whole or not at all.

importance_config.json      written last; names, shapes, dtypes and checksums of everything else
importance.safetensors      Omega by module name
adapter_model.safetensors, adapter_config.json      theta*, an ordinary PEFT adapter
layer_importance.json       importance per layer, and layer_importance.png, a picture of it (where matplotlib is installed)
README.md                   model card
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, fields
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.heatmap import draw_heatmap
from alora_trainer.importance.map import ImportanceInfo, ImportanceMap, Reference
from alora_trainer.importance.safetensors_stream import (
    tensor_digest,
    write_safetensors,
    write_tensors,
)
from alora_trainer.importance.storage import StoredOmega, storage_format, store

SCHEMA = 1
CONFIG_FILE = "importance_config.json"
OMEGA_FILE = "importance.safetensors"
INDEX_FILE = "importance.safetensors.index.json"
ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG_FILE = "adapter_config.json"
LAYERS_FILE = "layer_importance.json"
HEATMAP_FILE = "layer_importance.png"
CARD_FILE = "README.md"
PATTERNS = (
    "importance*.safetensors", INDEX_FILE, ADAPTER_FILE, ADAPTER_CONFIG_FILE, LAYERS_FILE, HEATMAP_FILE, CARD_FILE, CONFIG_FILE
)  # fmt: skip


def save_map(importance: ImportanceMap, folder: Path, *, storage: str | None, max_shard_bytes: int) -> None:
    """Write `importance` into `folder`; a map that is already there stays whole until the new one is.

    Raises:
        ALoRAError: `folder` is a file; `storage` is unknown.
    """
    if storage is not None:
        storage_format(storage)
    if folder.exists() and not folder.is_dir():
        raise ALoRAError(f"{folder} is a file: name a folder for the importance map")
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write_all(importance, staging, storage or importance.storage, max_shard_bytes)
        _move_into_place(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write_all(importance: ImportanceMap, folder: Path, storage: str, max_shard_bytes: int) -> None:
    from alora_trainer.importance.card import layer_table, model_card

    parts = _write_omega(importance, folder, storage, max_shard_bytes)
    write_tensors(folder / ADAPTER_FILE, importance.adapter_state)
    importance.adapter_config.save_pretrained(folder)
    _write_json(folder / LAYERS_FILE, layer_table(importance))
    drawn = draw_heatmap(importance.layer_norms, folder / HEATMAP_FILE)
    (folder / CARD_FILE).write_text(model_card(importance, HEATMAP_FILE if drawn else None), encoding="utf-8")
    _write_json(folder / CONFIG_FILE, _config(importance, storage, parts, folder / ADAPTER_FILE))
    for file in folder.iterdir():
        _sync(file)


def _write_omega(
    importance: ImportanceMap, folder: Path, storage: str, max_shard_bytes: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """Write Omega, weight by weight, into one file or several; what the config says of every weight's parts."""
    source = _Parts(importance, storage)
    shards = _plan_shards(source, list(importance), max_shard_bytes)
    parts: dict[str, dict[str, dict[str, Any]]] = {}
    for number, names in enumerate(shards, start=1):
        file = OMEGA_FILE if len(shards) == 1 else f"importance-{number:05d}-of-{len(shards):05d}.safetensors"
        kinds = {_key(name, part): kind for name in names for part, kind in source.kinds(name).items()}
        digests = write_safetensors(folder / file, kinds, source.read)
        for name in names:
            parts[name] = {
                part: {
                    "key": _key(name, part),
                    "file": file,
                    "dtype": str(dtype).removeprefix("torch."),
                    "shape": list(shape),
                    "sha256": digests[_key(name, part)],
                }
                for part, (dtype, shape) in source.kinds(name).items()
            }
    if len(shards) > 1:
        weight_map = {part["key"]: part["file"] for entry in parts.values() for part in entry.values()}
        size = sum((folder / file).stat().st_size for file in set(weight_map.values()))
        _write_json(folder / INDEX_FILE, {"metadata": {"total_size": size}, "weight_map": weight_map})
    return parts


def _key(name: str, part: str) -> str:
    """The key of a part in the safetensors file: the weight's own name if its format has one part only."""
    return f"{name}.{part}" if part else name


class _Parts:
    """The parts of a map's weights in a storage format, converted one weight at a time when they are asked for."""

    def __init__(self, importance: ImportanceMap, storage: str) -> None:
        self._importance = importance
        self._format = storage_format(storage)
        self._homes = {_key(name, part): (name, part) for name in importance for part in self.kinds(name)}
        self._latest: tuple[str, StoredOmega] | None = None

    def kinds(self, name: str) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        stored = self._importance.stored(name)
        return stored.kinds if stored.format == self._format.format else self._format.encoded_kinds(stored.shape)

    def read(self, key: str) -> torch.Tensor:
        name, part = self._homes[key]
        if self._latest is None or self._latest[0] != name:
            self._latest = None  # let go of the last one before the next is made
            stored = self._importance.stored(name)
            same = stored.format == self._format.format
            self._latest = (name, stored if same else self._format.encode(stored.dense()))
        return self._latest[1].parts[part]


def _plan_shards(source: _Parts, names: list[str], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name in names:
        size = sum(math.prod(shape) * dtype.itemsize for dtype, shape in source.kinds(name).values())
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _config(importance: ImportanceMap, storage: str, parts: Mapping[str, Any], adapter_file: Path) -> dict[str, Any]:
    tensors = {
        name: {
            "shape": list(importance.stored(name).shape),
            "scaling": importance.reference[name].scaling,
            "base_sample": importance.base_samples.get(name),
            "parts": parts[name],
        }
        for name in importance
    }
    return {
        "schema_version": SCHEMA,
        "storage": storage,
        "storage_parameters": storage_format(storage).parameters(),
        **asdict(importance.info),
        "layer_norms": importance.layer_norms,
        "adapter_sha256": _file_digest(adapter_file),
        "tensors": tensors,
    }


def _is_ours(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in PATTERNS)


def _move_into_place(staging: Path, folder: Path) -> None:
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if not all(_is_ours(name) for name in names):
        # The folder holds other things, too: without its config the old map no longer passes for one, and the new one
        # does only when its own config has arrived, last.
        (folder / CONFIG_FILE).unlink(missing_ok=True)
        for name in names:
            if fnmatch(name, "importance*.safetensors") or name == INDEX_FILE:
                (folder / name).unlink()
        for path in sorted(staging.iterdir(), key=lambda path: path.name == CONFIG_FILE):
            os.replace(path, folder / path.name)
        return
    staging.chmod(0o755)
    if not folder.exists():
        os.rename(staging, folder)
        return
    retired = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
    os.rename(folder, retired / folder.name)
    os.rename(staging, folder)
    shutil.rmtree(retired)


def resolve_source(source: str, revision: str | None) -> Path:
    """The local folder of a map: `source` itself, or a download of the Hub repository it names.

    Raises:
        ALoRAError: there is neither such a folder nor such a repository.
    """
    path = Path(source)
    if path.is_dir():
        if revision is not None:
            raise ALoRAError(f"{source} is a folder, which has no revision {revision!r}: leave revision out")
        return path
    if path.exists() or source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise ALoRAError(
            f"there is no importance map at {source}: give a folder written by save_pretrained, or a Hub id"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(PATTERNS)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ALoRAError(f"there is no folder {source}, and the Hub gives no such repository: {reason}") from error


def load_map(folder: Path, *, storage: str | None = None) -> ImportanceMap:
    """Read and check the map in `folder`, converting to another storage format on the way if one is named.

    Raises:
        ALoRAError: a file is missing, torn, damaged, or of a schema or format that this version does not know.
    """
    config = _read_config(folder)
    tensors = config["tensors"]
    adapter_state = _read_adapter(folder / ADAPTER_FILE, config["adapter_sha256"])
    known = {f.name for f in fields(ImportanceInfo)}
    return ImportanceMap(
        {name: _read_omega(folder, name, entry, config["storage"], storage) for name, entry in tensors.items()},
        {name: _reference(name, adapter_state, entry, folder) for name, entry in tensors.items()},
        adapter_state=adapter_state,
        adapter_config=_read_adapter_config(folder),
        base_samples={name: entry.get("base_sample") for name, entry in tensors.items()},
        info=ImportanceInfo(**{key: value for key, value in config.items() if key in known}),
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ALoRAError(f"{folder} holds no importance map: {CONFIG_FILE} is missing (was it written to the end?)")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        schema = config["schema_version"]
        if schema != SCHEMA:
            raise ALoRAError(f"{path} has schema {schema!r}, and this version reads {SCHEMA}: update alora-trainer")
        kind = storage_format(str(config["storage"]))
        if config["storage_parameters"] != kind.parameters():
            raise ALoRAError(
                f"{path} has unknown storage parameters {config['storage_parameters']}: update alora-trainer"
            )
        for entry in config["tensors"].values():
            float(entry["scaling"])
            _check_parts(entry, kind)
        str(config["adapter_sha256"])
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, ALoRAError):
            raise
        raise ALoRAError(
            f"{path} is damaged ({type(error).__name__}: {error}): fetch or record the map again"
        ) from error
    return config


def _check_parts(entry: Mapping[str, Any], kind: type[StoredOmega]) -> None:
    """Raise ValueError unless the config describes a weight's parts as its format has them."""
    rows, columns = entry["shape"]
    expected = kind.part_kinds((rows, columns))
    if not (isinstance(rows, int) and isinstance(columns, int) and rows > 0 and columns > 0):
        raise ValueError("a shape is not positive")
    if set(entry["parts"]) != set(expected):
        raise ValueError(f"a weight has the parts {sorted(entry['parts'])} and needs {sorted(expected)}")
    for part, (dtype, shape) in expected.items():
        described = entry["parts"][part]
        fits = all(want in (-1, got) for want, got in zip(shape, described["shape"], strict=True))
        if not fits or described["dtype"] != str(dtype).removeprefix("torch."):
            raise ValueError(
                f"part {part!r} is {described['dtype']} {described['shape']} and should be {dtype} {shape}"
            )
        if (
            not fnmatch(described["file"], "importance*.safetensors")
            or Path(described["file"]).name != described["file"]
        ):
            raise ValueError(f"{described['file']!r} is no file of an importance map")
        str(described["key"]), str(described["sha256"])


def _read_omega(folder: Path, name: str, entry: Mapping[str, Any], stored: str, wanted: str | None) -> StoredOmega:
    rows, columns = entry["shape"]
    parts = {part: _read_part(folder / kind["file"], kind) for part, kind in entry["parts"].items()}
    omega = storage_format(stored)((rows, columns), parts)
    return omega if wanted in (None, stored) else store(omega.dense(), wanted)


def _read_part(path: Path, kind: Mapping[str, Any]) -> torch.Tensor:
    if not path.is_file():
        raise ALoRAError(f"the importance map is not whole: {path} is missing")
    key = kind["key"]
    try:
        with safe_open(path, framework="pt") as file:
            # The header is read first: nothing is allocated for a tensor of an unexpected size.
            if list(file.get_slice(key).get_shape()) != list(kind["shape"]):
                raise ALoRAError(f"{key} has another shape in {path} than in {CONFIG_FILE}: fetch or record it again")
            tensor = file.get_tensor(key)
    except SafetensorError as error:
        raise ALoRAError(f"{path} is damaged ({error}): fetch or record the map again") from error
    if str(tensor.dtype).removeprefix("torch.") != kind["dtype"] or tensor_digest(tensor) != kind["sha256"]:
        raise ALoRAError(f"{key} in {path} does not match its checksum: fetch or record the map again")
    return tensor


def _read_adapter(path: Path, digest: str) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise ALoRAError(f"the importance map is not whole: {path} is missing")
    if _file_digest(path) != digest:
        raise ALoRAError(f"{path} does not match its checksum in {CONFIG_FILE}: fetch or record the map again")
    return load_file(path)


def _read_adapter_config(folder: Path) -> Any:
    from peft import PeftConfig

    if not (folder / ADAPTER_CONFIG_FILE).is_file():
        raise ALoRAError(f"the importance map is not whole: {folder / ADAPTER_CONFIG_FILE} is missing")
    return PeftConfig.from_pretrained(str(folder))


def _reference(name: str, state: Mapping[str, torch.Tensor], entry: Mapping[str, Any], folder: Path) -> Reference:
    for a_key, b_key in (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B")):
        keys = tuple(f"base_model.model.{name}.{key}" for key in (a_key, b_key))
        if all(key in state for key in keys):
            a, b = (state[key].flatten(1) for key in keys)
            return Reference(a, b, float(entry["scaling"]))
    raise ALoRAError(f"{folder / ADAPTER_FILE} has no factors of {name}: fetch or record the map again")


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    with contextlib.suppress(PermissionError), path.open("rb+") as file:
        os.fsync(file.fileno())
