"""From a folder or Hub id to a local folder with the files that are needed, and no more."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from alora_trainer.artefact.adapter_config import checked_adapter_config
from alora_trainer.artefact.config_file import read_config, write_config
from alora_trainer.artefact.entries import MapConfig
from alora_trainer.artefact.files import (
    ADAPTER_CONFIG_FILE,
    CARD_FILE,
    CONFIG_FILE,
    HEATMAP_FILE,
    LAYERS_FILE,
    check_inside,
    is_omega_file,
    read_json,
)
from alora_trainer.artefact.hub.errors import hub_errors
from alora_trainer.artefact.hub.healing import healed, whole
from alora_trainer.artefact.map_folder import present_folder, write_folder
from alora_trainer.artefact.reading import load_map, verify_map
from alora_trainer.artefact.theta_files import THETA_FILES
from alora_trainer.artefact.writing import MAX_SHARD_BYTES, save_map
from alora_trainer.basics.hub_ids import is_hub_id
from alora_trainer.basics.keys import meant_path
from alora_trainer.errors import ALoRAError
from alora_trainer.importance.importance_values import ImportanceValues
from alora_trainer.importance.origin import Origin
from alora_trainer.importance.selection import Layers, select_weights

Value = TypeVar("Value")
_CACHED = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})$")


def fetch(
    source: str,
    *,
    revision: str | None = None,
    storage: str | None = None,
    layers: Layers | None = None,
    token: str | bool | None = None,
    extras: bool = False,
) -> tuple[Path, Origin | None]:
    """The local folder of a map, and where it comes from: `source` itself, or the files that are needed of a repository.

    Args:
        source: a folder, "organisation/name", or "organisation/name@revision".
        revision: of the Hub repository.
        storage, layers: what will be read: fetch no other file.
        token: as in `huggingface_hub`.
        extras: fetch the card, the heat map and the table of layers, too.

    Raises:
        ALoRAError: there is neither such a folder nor such a repository, or it holds no importance map.
    """
    path = Path(source)
    if path.is_dir():
        if revision is not None:
            raise ALoRAError(f"{source} is a folder, which has no revision {revision!r}: leave revision out")
        return present_folder(path), cached_origin(path)
    repo_id, revision = split_id(source, revision)
    folder, config = fetch_config(repo_id, revision=revision, token=token)
    origin = Origin(repo_id, folder.name)
    with hub_errors(repo_id, revision, "fetched", or_path=True):
        whole(
            lambda: snapshot_download(
                repo_id,
                revision=origin.commit,
                allow_patterns=needed_files(config, storage, layers, extras=extras),
                token=token,
            )
        )
    return folder, origin


def read_from(
    source: str,
    read: Callable[[Path, Origin | None], Value],
    *,
    revision: str | None = None,
    storage: str | None = None,
    layers: Layers | None = None,
    token: str | bool | None = None,
    extras: bool = False,
) -> Value:
    """What `read` makes of a map's folder and its origin; what arrived damaged from the Hub is fetched again once.

    Args:
        source, revision, storage, layers, token, extras: as in `fetch`.
        read: reads the map, or raises ALoRAError.

    Raises:
        ALoRAError: as `fetch`, and as `read`.
    """
    folder, origin = fetch(source, revision=revision, storage=storage, layers=layers, token=token, extras=extras)
    if origin is None or Path(source).is_dir():
        return read(folder, origin)

    def files() -> list[str]:
        return needed_files(read_config(folder), storage, layers, extras=extras)

    return healed(lambda: read(folder, origin), origin.repo_id, folder, files, token)


def pinned(source: str, *, storage: str | None = None) -> str:
    """A map's folder as it is, or its Hub id with the commit that it is fetched at now, every value of it checked.

    Raises:
        ALoRAError: as `read_from`; it is damaged.
    """

    def check(folder: Path, origin: Origin | None) -> Origin | None:
        verify_map(folder, [read_config(folder).format_for(storage)])
        return origin

    return source if Path(source).is_dir() else str(read_from(source, check, storage=storage))


def split_id(source: str, revision: str | None) -> tuple[str, str | None]:
    """A Hub id and a revision out of "organisation/name@revision".

    Raises:
        ALoRAError: it is no Hub id, or has a revision though another one is given.
    """
    repo_id, at, named = source.partition("@")
    if Path(source).exists() or not is_hub_id(repo_id):
        raise ALoRAError(
            f"there is no importance map at {source}: {meant_path(Path(source))}give a folder written by save_pretrained, or a "
            "Hub id"
        )
    if at and (not named or revision not in (None, named)):
        raise ALoRAError(
            f"{source} names the revision {named!r}, and {revision!r} is given beside it: give one of them"
        )
    return repo_id, revision or named or None


def fetch_config(repo_id: str, *, revision: str | None, token: str | bool | None) -> tuple[Path, MapConfig]:
    """The cached folder of a repository, with its importance_config.json in it, and that file's content.

    Raises:
        ALoRAError: there is no such repository, or it holds no importance map.
    """
    with hub_errors(repo_id, revision, "fetched", or_path=True):
        try:
            path = Path(whole(lambda: hf_hub_download(repo_id, CONFIG_FILE, revision=revision, token=token)))
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError):
                raise
            raise ALoRAError(f"{repo_id} is no importance map: it has no {CONFIG_FILE}") from error
    folder = path.parent
    return folder, healed(lambda: read_config(folder), repo_id, folder, lambda: [CONFIG_FILE], token)


def config_of(source: str) -> MapConfig:
    """What a map says of itself: one in a folder, or on the Hub, of which no other file is fetched.

    Args:
        source: a folder, "organisation/name", or "organisation/name@revision".

    Raises:
        ALoRAError: there is neither such a folder nor such a repository, or it holds no importance map.
    """
    path = Path(source)
    if path.is_dir():
        return read_config(present_folder(path))
    repo_id, revision = split_id(source, None)
    return fetch_config(repo_id, revision=revision, token=None)[1]


def check_adapter_on_hub(repo_id: str) -> None:
    """Look at the configuration of an adapter on the Hub before PEFT is let at it.

    Raises:
        ALoRAError: the Hub does not give it, or it is a LoRA adapter's and asks for more than one: patterns in it may take for
            ever to match, values are of other types than their fields, or it wants modules imported.
    """
    with hub_errors(repo_id, None, "fetched", or_path=True):
        try:
            path = Path(whole(lambda: hf_hub_download(repo_id, ADAPTER_CONFIG_FILE)))
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError):
                raise
            raise ALoRAError(f"{repo_id} holds no adapter: it has no {ADAPTER_CONFIG_FILE}") from error
    settings = read_json(path)
    if settings.get("peft_type") == "LORA":  # other kinds are refused where they are put on the model
        checked_adapter_config(settings, f"{repo_id}'s {ADAPTER_CONFIG_FILE}")


def needed_files(config: MapConfig, storage: str | None, layers: Layers | None, *, extras: bool = False) -> list[str]:
    """The files of a repository that reading a map in a format, and some weights of it, needs."""
    names = select_weights(config.weights, layers)
    files = [
        CONFIG_FILE,
        *THETA_FILES[config.theta.type].files,
        *config.omega_files(config.format_for(storage), names),
    ]
    if extras:
        files += [name for name in (LAYERS_FILE, HEATMAP_FILE) if name in config.files] + [CARD_FILE]
    return files


def cached_origin(folder: Path) -> Origin | None:
    """The repository and commit of a folder in the Hub's cache; None for any other folder."""
    match = _CACHED.search(folder.resolve().as_posix())
    return Origin(f"{match.group(1)}/{match.group(2)}", match.group(3)) if match else None


def pull(
    source: str,
    folder: Path,
    *,
    revision: str | None = None,
    storage: str | None = None,
    layers: Layers | None = None,
    token: str | bool | None = None,
) -> Origin | None:
    """Fetch a map into a folder of its own, where it appears whole or not at all, every value of it checked.

    What is in the repository as it is wanted is copied; other formats and some layers alone are read and written anew.

    Args:
        source, revision, storage, layers, token: as in `ImportanceMap.from_pretrained`.
        folder: made if need be; another map in it is replaced.

    Raises:
        ALoRAError: as `ImportanceMap.from_pretrained`; `folder` is a file.
    """

    def read(fetched: Path, origin: Origin | None) -> Origin | None:
        config = read_config(fetched)
        if layers is None and (storage is None or storage in config.formats):
            chosen = config.format_for(storage)
            verify_map(fetched, [chosen])
            write_folder(folder, lambda staging: _copy(fetched, staging, config, chosen))
        else:
            values = load_map(fetched, ImportanceValues, storage=storage, layers=layers, origin=origin)
            save_map(values, folder, storage=None, max_shard_bytes=MAX_SHARD_BYTES)
        return origin

    wanted: dict[str, Any] = {"revision": revision, "storage": storage, "layers": layers, "token": token}
    return read_from(source, read, **wanted, extras=True)


def _copy(source: Path, target: Path, config: MapConfig, storage: str) -> None:
    """Copy a map with one of its formats, which becomes its first one; its config says of no other."""
    omega = config.omega_files(storage)
    kept = [
        name for name in config.files if name in omega or not is_omega_file(name) and not name.endswith("index.json")
    ]
    for name in kept:
        shutil.copyfile(check_inside(source, name), target / name)
    if (source / CARD_FILE).is_file():
        shutil.copyfile(check_inside(source, CARD_FILE), target / CARD_FILE)
    only = replace(
        config,
        storage=storage,
        formats={storage: config.formats[storage]},
        files={name: config.files[name] for name in kept},
    )
    write_config(only, target)
