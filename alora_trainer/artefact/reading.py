"""Reading a map's folder: all of it, or some weights in some format; every tensor is checked before it is used."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from alora_trainer.artefact.config_file import read_config
from alora_trainer.artefact.entries import MapConfig, TensorEntry
from alora_trainer.artefact.files import check_inside
from alora_trainer.artefact.map_folder import present_folder
from alora_trainer.artefact.tensor_file import TensorHeader, read_header, read_tensor
from alora_trainer.artefact.theta_files import THETA_FILES
from alora_trainer.basics.processes import Processes, together
from alora_trainer.errors import ALoRAError
from alora_trainer.importance.importance_values import ImportanceValues
from alora_trainer.importance.kinds.checks import checked_measure, converted
from alora_trainer.importance.kinds.elsewhere import elsewhere
from alora_trainer.importance.kinds.formats import storage_format
from alora_trainer.importance.kinds.kind import Importance, Measure
from alora_trainer.importance.kinds.sharing import SharedParts
from alora_trainer.importance.origin import Origin
from alora_trainer.importance.selection import Layers, select_weights
from alora_trainer.weights.theta import AdapterTheta, BaseTheta

Values = TypeVar("Values", bound=ImportanceValues)


def load_map(
    folder: Path,
    as_type: type[Values],
    *,
    storage: str | None = None,
    layers: Layers | None = None,
    origin: Origin | None = None,
) -> Values:
    """Read and check the map in `folder`.

    Args:
        folder: from `save_map`, or fetched from the Hub.
        as_type: what to make of it: `ImportanceMap`, or the values alone.
        storage: the format to have it in; converted on the way unless it is stored in this one.
        layers: the weights to read (see `select_weights`); None reads all.
        origin: the repository that the folder was fetched from.

    Raises:
        ALoRAError: a file is missing, torn, damaged, or of a schema or format that this version does not know.
    """
    folder = present_folder(folder)
    config = read_config(folder)
    names = select_weights(config.weights, layers)
    theta = THETA_FILES[config.theta.type].open(folder, config).theta(names)
    return as_type(
        dict(read_omega(folder, config, names, storage)),
        theta,
        base_samples={name: config.weights[name].base_sample for name in names},
        info=config.info,
        origin=origin,
    )


def load_share(
    folder: Path, as_type: type[Values], *, storage: str | None = None, origin: Origin | None = None
) -> Values:
    """`load_map`, of several processes together: each reads the importance of its own share of the weights alone.

    The others' stands in the map as `Elsewhere`: how large it is, as the process found that has read it. theta*, which is
    thin, is whole on all of them.

    Raises:
        ALoRAError: as `load_map`, on all processes, whichever of them met it.
    """
    processes = Processes()
    if processes.count == 1:
        return load_map(folder, as_type, storage=storage, origin=origin)
    folder = present_folder(folder)
    config = read_config(folder)
    names = list(config.weights)
    owners = processes.owners({name: math.prod(config.weights[name].shape) for name in names})
    own: dict[str, Importance] = {}
    measures: dict[str, Measure] = {}
    failure = None
    try:
        own = dict(read_omega(folder, config, [name for name in names if owners[name] == processes.rank], storage))
        measures = {name: checked_measure(name, omega) for name, omega in own.items()}
    except ALoRAError as error:
        failure = error
    said = together({processes.rank: (None if failure is None else str(failure), measures)})
    if failure is not None:
        raise failure
    for message, found in said.values():
        if message is not None:
            raise ALoRAError(message)
        measures |= found
    like = storage_format(storage or config.format_for(storage))
    omega = {name: own.get(name) or elsewhere(config.weights[name].shape, like, measures[name]) for name in names}
    return as_type(
        omega,
        THETA_FILES[config.theta.type].open(folder, config).theta(names),
        base_samples={name: config.weights[name].base_sample for name in names},
        info=config.info,
        origin=origin,
    )


def read_omega(
    folder: Path, config: MapConfig, names: Sequence[str], storage: str | None
) -> Iterator[tuple[str, Importance]]:
    """The importance of the weights in `names`, one by one, in the format `storage` (None: as it is stored)."""
    stored = config.format_for(storage)
    wanted = storage_format(storage or stored)
    tensors, shared = _Tensors(folder, config, stored, names), SharedParts()
    for name in names:
        entries = config.formats[stored][name]
        parts = {part: tensors.read(entry) for part, entry in entries.items()}
        omega = storage_format(stored)(config.weights[name].shape, parts)
        omega.check_parts(name)
        there = converted(name, omega, wanted)
        # Without a conversion they are one tensor already, and whoever looks at one weight at a time lets it go.
        keys = {part: entries[part].place for part in omega.shareable if part in entries} if there is not omega else {}
        yield name, shared.joined(there, keys)


class _Tensors:
    """The tensors of some weights, each read once: one that several weights share is held until the last of them has it."""

    def __init__(self, folder: Path, config: MapConfig, storage: str, names: Sequence[str]) -> None:
        self._folder = folder
        self._headers = OmegaFiles(folder, config, storage)
        self._uses = Counter(entry.place for name in names for entry in config.formats[storage][name].values())
        self._held: dict[tuple[str, str], torch.Tensor] = {}

    def read(self, entry: TensorEntry) -> torch.Tensor:
        tensor = self._held.pop(entry.place, None)
        if tensor is None:
            tensor = read_tensor(self._folder / entry.file, self._headers.header(entry), entry)
        self._uses[entry.place] -= 1
        if self._uses[entry.place]:
            self._held[entry.place] = tensor
        return tensor


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
    folder = present_folder(folder)
    config = read_config(folder)
    if config.theta.type is BaseTheta:
        raise ALoRAError(
            f"the importance map in {folder} was measured at the base weights, so that no adapter belongs to it: put a fresh "
            "one on the base model"
        )
    if config.theta.type is not AdapterTheta:
        raise ALoRAError(
            f"the importance map in {folder} is of a training without adapters: there is none to put on a model"
        )
    THETA_FILES[config.theta.type].open(folder, config)


def verify_map(folder: Path, storages: Sequence[str] | None = None) -> MapConfig:
    """Check everything that `load_map` checks, holding one weight at a time.

    Args:
        storages: the stored formats to look at; None looks at all.

    Raises:
        ALoRAError: as `load_map`.
    """
    folder = present_folder(folder)
    config = read_config(folder)
    reader = THETA_FILES[config.theta.type].open(folder, config)
    for storage in storages if storages is not None else list(config.formats):
        for name, omega in read_omega(folder, config, list(config.weights), storage):
            ImportanceValues({name: omega}, reader.theta_of(name))
    return config
