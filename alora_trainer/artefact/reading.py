"""Reading a map's folder: all of it, or some weights in some format; every tensor is checked before it is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from alora_trainer.artefact.adapter_file import read_checked_adapter, reference
from alora_trainer.artefact.config_file import MapConfig, TensorEntry, read_config
from alora_trainer.artefact.files import check_inside
from alora_trainer.artefact.reference_file import reference_reader
from alora_trainer.artefact.tensor_file import TensorHeader, read_header, read_tensor
from alora_trainer.errors import ALoRAError
from alora_trainer.importance.importance_values import ImportanceValues
from alora_trainer.importance.kinds.elementwise import check_values
from alora_trainer.importance.kinds.formats import storage_format, store
from alora_trainer.importance.kinds.kind import Importance
from alora_trainer.importance.origin import Origin
from alora_trainer.importance.selection import Layers, select_weights
from alora_trainer.weights.reference import FullReference, Reference, restricted

Values = TypeVar("Values", bound=ImportanceValues)


def load_map(
    folder: Path,
    kind: type[Values],
    *,
    storage: str | None = None,
    layers: Layers | None = None,
    origin: Origin | None = None,
) -> Values:
    """Read and check the map in `folder`.

    Args:
        folder: from `save_map`, or fetched from the Hub.
        kind: what to make of it: `ImportanceMap`, or the values alone.
        storage: the format to have it in; converted on the way unless it is stored in this one.
        layers: the weights to read (see `layers.select_weights`); None reads all.
        origin: the repository that the folder was fetched from.

    Raises:
        ALoRAError: a file is missing, torn, damaged, or of a schema or format that this version does not know.
    """
    config = read_config(folder)
    names = select_weights(config.weights, layers)
    theta, state, adapter_config = _theta(folder, config)
    references = {name: theta(name) for name in names}
    if len(names) < len(config.weights) and not config.is_full:
        state, adapter_config = restricted(state, adapter_config, names)
    return kind(
        dict(read_omega(folder, config, names, storage)),
        references,
        adapter_state=state,
        adapter_config=adapter_config,
        base_samples={name: config.weights[name].base_sample for name in names},
        info=config.info,
        origin=origin,
    )


def _theta(
    folder: Path, config: MapConfig
) -> tuple[Callable[[str], Reference | FullReference], dict[str, torch.Tensor], Any]:
    """What gives theta* of a weight, and the adapter's state dict and configuration where it is one."""
    if config.is_full:
        return reference_reader(folder, config), {}, None
    state, adapter_config = read_checked_adapter(folder, config)
    return (lambda name: reference(name, state, config.weights[name])), state, adapter_config


def read_omega(
    folder: Path, config: MapConfig, names: Sequence[str], storage: str | None
) -> Iterator[tuple[str, Importance]]:
    """Omega of the weights in `names`, one by one."""
    stored = config.format_for(storage)
    headers = OmegaFiles(folder, config, stored)
    for name in names:
        parts = {
            part: read_tensor(folder / entry.file, headers.header(entry), entry)
            for part, entry in config.formats[stored][name].items()
        }
        omega = storage_format(stored)(config.weights[name].shape, parts)
        check_values(name, omega)
        yield name, omega if storage in (None, stored) else store(omega.dense(), storage)


class OmegaFiles:
    """The headers of a format's files, each read once and compared with what the config says is in it."""

    def __init__(self, folder: Path, config: MapConfig, storage: str) -> None:
        self._folder = folder
        self._config = config
        self._keys: dict[str, set[str]] = {}
        for parts in config.formats[storage].values():
            for entry in parts.values():
                self._keys.setdefault(entry.file, set()).add(entry.key)
        self._headers: dict[str, dict[str, TensorHeader]] = {}

    def header(self, entry: TensorEntry) -> dict[str, TensorHeader]:
        """The header of the file that `entry` is in.

        Raises:
            ALoRAError: the file is missing, has another size, or holds other tensors than the config names.
        """
        if entry.file not in self._headers:
            path = check_inside(self._folder, entry.file)
            size = path.stat().st_size
            if size != self._config.files[entry.file]:
                raise ALoRAError(
                    f"{path} has {size:,} bytes and should have {self._config.files[entry.file]:,}: it is torn or "
                    "damaged, fetch or record the map again"
                )
            header = read_header(path)
            if set(header) != self._keys[entry.file]:
                raise ALoRAError(f"{path} holds other tensors than the importance map's config names: fetch it again")
            self._headers[entry.file] = header
        return self._headers[entry.file]


def check_reference(folder: Path) -> None:
    """Check theta* alone, before PEFT is let at its files.

    Raises:
        ALoRAError: as `load_map`; theta* is no adapter.
    """
    config = read_config(folder)
    if config.is_full:
        raise ALoRAError(
            f"the importance map in {folder} is of a training without adapters: there is none to put on a model"
        )
    read_checked_adapter(folder, config)


def verify_map(folder: Path, storages: Sequence[str] | None = None) -> MapConfig:
    """Check everything that `load_map` checks, holding one weight at a time.

    Args:
        storages: the stored formats to look at; None looks at all.

    Raises:
        ALoRAError: as `load_map`.
    """
    config = read_config(folder)
    theta, _, adapter_config = _theta(folder, config)
    for storage in storages if storages is not None else list(config.formats):
        for name, omega in read_omega(folder, config, list(config.weights), storage):
            ImportanceValues({name: omega}, {name: theta(name)}, adapter_state={}, adapter_config=adapter_config)
    return config
