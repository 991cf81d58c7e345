"""The artefact on disk: what a folder or Hub repository with an importance map holds, written whole or not at all.

importance_config.json      written last; names, shapes, dtypes and checksums of everything else
importance.safetensors      Omega by module name
adapter_model.safetensors, adapter_config.json      theta*, an ordinary PEFT adapter
layer_importance.json       importance per layer, for people and pictures
README.md                   model card
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.map import ImportanceInfo, ImportanceMap, Reference

SCHEMA = 1
CONFIG_FILE = "importance_config.json"
OMEGA_FILE = "importance.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG_FILE = "adapter_config.json"
LAYERS_FILE = "layer_importance.json"
CARD_FILE = "README.md"
FILES = (OMEGA_FILE, ADAPTER_FILE, ADAPTER_CONFIG_FILE, LAYERS_FILE, CARD_FILE, CONFIG_FILE)


def save_map(importance: ImportanceMap, folder: Path) -> None:
    """Write `importance` into `folder`; a map that is already there stays whole until the new one is.

    Raises:
        ALoRAError: `folder` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ALoRAError(f"{folder} is a file: name a folder for the importance map")
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write_all(importance, staging)
        _move_into_place(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write_all(importance: ImportanceMap, folder: Path) -> None:
    from alora_trainer.importance.card import layer_table, model_card

    omega = {name: tensor.detach().cpu().contiguous() for name, tensor in importance.items()}
    save_file(omega, folder / OMEGA_FILE, metadata={"format": "pt"})
    adapter = {key: tensor.detach().cpu().contiguous() for key, tensor in importance.adapter_state.items()}
    save_file(adapter, folder / ADAPTER_FILE, metadata={"format": "pt"})
    importance.adapter_config.save_pretrained(folder)
    _write_json(folder / LAYERS_FILE, layer_table(importance))
    (folder / CARD_FILE).write_text(model_card(importance), encoding="utf-8")
    _write_json(folder / CONFIG_FILE, _config(importance, omega, folder / ADAPTER_FILE))
    for file in folder.iterdir():
        _sync(file)


def _config(importance: ImportanceMap, omega: Mapping[str, torch.Tensor], adapter_file: Path) -> dict[str, Any]:
    tensors = {
        name: {
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "sha256": _tensor_digest(tensor),
            "scaling": importance.reference[name].scaling,
            "base_sample": importance.base_samples.get(name),
        }
        for name, tensor in omega.items()
    }
    return {
        "schema_version": SCHEMA,
        "storage": "dense",
        **asdict(importance.info),
        "layer_norms": importance.layer_norms,
        "adapter_sha256": _file_digest(adapter_file),
        "tensors": tensors,
    }


def _move_into_place(staging: Path, folder: Path) -> None:
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if names - set(FILES):
        # The folder holds other things, too: without its config the old map no longer passes for one, and the new one
        # does only when its own config has arrived, last.
        (folder / CONFIG_FILE).unlink(missing_ok=True)
        for name in FILES:
            os.replace(staging / name, folder / name)
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
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ALoRAError(f"there is no folder {source}, and the Hub gives no such repository: {reason}") from error


def load_map(folder: Path) -> ImportanceMap:
    """Read and check the map in `folder`.

    Raises:
        ALoRAError: a file is missing, torn, damaged, or of a schema that this version does not know.
    """
    config = _read_config(folder)
    tensors = config["tensors"]
    omega = _read_omega(folder / OMEGA_FILE, tensors)
    adapter_state = _read_adapter(folder / ADAPTER_FILE, config["adapter_sha256"])
    known = {f.name for f in fields(ImportanceInfo)}
    return ImportanceMap(
        omega,
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
        for entry in config["tensors"].values():
            rows, columns = (int(size) for size in entry["shape"])
            float(entry["scaling"]), str(entry["sha256"]), str(entry["dtype"])
            if rows < 1 or columns < 1:
                raise ValueError("a shape is not positive")
        str(config["adapter_sha256"])
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, ALoRAError):
            raise
        raise ALoRAError(
            f"{path} is damaged ({type(error).__name__}: {error}): fetch or record the map again"
        ) from error
    return config


def _read_omega(path: Path, entries: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise ALoRAError(f"the importance map is not whole: {path} is missing")
    omega = {}
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            if names != set(entries):
                raise ALoRAError(f"{path} and {CONFIG_FILE} name different weights: fetch or record the map again")
            for name, entry in entries.items():
                if list(file.get_slice(name).get_shape()) != list(entry["shape"]):
                    raise ALoRAError(
                        f"{name} has another shape in {path} than in {CONFIG_FILE}: fetch or record it again"
                    )
                tensor = file.get_tensor(name)
                if _tensor_digest(tensor) != entry["sha256"]:
                    raise ALoRAError(f"{name} in {path} does not match its checksum: fetch or record the map again")
                omega[name] = tensor
    except SafetensorError as error:
        raise ALoRAError(f"{path} is damaged ({error}): fetch or record the map again") from error
    return omega


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


def _tensor_digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().data).hexdigest()


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
