"""Writing a map's folder, tensor by tensor, in one storage format or several."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from pathlib import Path

import torch

from alora_trainer.artefact.cards.map_card import layer_table, write_map_card
from alora_trainer.artefact.config_file import write_config
from alora_trainer.artefact.entries import MapConfig, TensorEntry, described_tensors
from alora_trainer.artefact.files import (
    CARD_FILE,
    HEATMAP_FILE,
    LAYERS_FILE,
    index_file,
    omega_file,
    sizes,
    write_json,
)
from alora_trainer.artefact.heatmap import draw_heatmap
from alora_trainer.artefact.map_folder import write_folder
from alora_trainer.artefact.theta_files import THETA_FILES
from alora_trainer.basics.safetensors_writer import tensor_digest, write_safetensors
from alora_trainer.errors import ALoRAError
from alora_trainer.importance.importance_values import ImportanceValues
from alora_trainer.importance.kinds.checks import converted
from alora_trainer.importance.kinds.formats import storage_format
from alora_trainer.importance.kinds.kind import Importance, PartType
from alora_trainer.importance.kinds.sharing import identities
from alora_trainer.importance.selection import block_name

# Large enough for a few files only, small enough for some transformer blocks to be fetched without the others.
MAX_SHARD_BYTES = 1 << 29

Formats = dict[str, dict[str, dict[str, TensorEntry]]]


def save_map(
    importance: ImportanceValues, folder: Path, *, storage: str | Sequence[str] | None, max_shard_bytes: int
) -> None:
    """Write `importance` into `folder`; a map that is already there stays whole until the new one is.

    Raises:
        ALoRAError: `folder` is a file; `storage` is unknown; the map is empty.
    """
    formats = chosen_formats(importance, storage)
    write_folder(folder, lambda staging: write_map(importance, staging, formats, max_shard_bytes))


def chosen_formats(importance: ImportanceValues, storage: str | Sequence[str] | None) -> list[str]:
    """The storage formats to write, the map's first one first; by default the one that it is kept in.

    Raises:
        ALoRAError: one is unknown or of another kind of importance; the map is empty.
    """
    formats = [storage] if isinstance(storage, str) else list(dict.fromkeys(storage or [importance.storage]))
    for name in formats:
        if storage_format(name).kind != importance.kind:
            raise ALoRAError(
                f"storage={name!r} keeps {storage_format(name).kind} importance, and that of this map is {importance.kind}: "
                "leave storage out, or name a format of its kind"
            )
    if len(importance) == 0:
        raise ALoRAError("the importance map has no weights: there is nothing to save")
    return formats


def write_map(importance: ImportanceValues, folder: Path, formats: Sequence[str], max_shard_bytes: int) -> None:
    """Write everything into an empty folder."""
    entries: Formats = {}
    for number, storage in enumerate(formats):
        entries[storage] = _write_omega(importance, folder, storage, storage if number else None, max_shard_bytes)
    theta_files = THETA_FILES[type(importance.theta)]
    theta = theta_files.write(folder, importance.theta)
    write_json(folder / LAYERS_FILE, layer_table(importance))
    draw_heatmap(importance.layer_norms, folder / HEATMAP_FILE)
    config = MapConfig(
        kind=importance.kind,
        storage=formats[0],
        info=importance.info,
        layer_norms=importance.layer_norms,
        weights={
            name: theta_files.weight_entry(importance.theta[name], importance.base_samples.get(name))
            for name in importance
        },
        formats=entries,
        theta=theta,
        files=dict(sizes(folder)),
        kept_trace=importance.kept_trace,
    )
    write_map_card(config, folder / CARD_FILE, picture=(folder / HEATMAP_FILE).is_file())
    write_config(config, folder)


def _write_omega(
    importance: ImportanceValues, folder: Path, storage: str, infix: str | None, max_shard_bytes: int
) -> dict[str, dict[str, TensorEntry]]:
    """Write Omega, weight by weight, into one file or several; where every weight's parts are."""
    source = _Parts(importance, storage)
    shards = plan_shards({name: source.nbytes(name) for name in importance}, max_shard_bytes)
    described: dict[str, TensorEntry] = {}
    for number, names in enumerate(shards, start=1):
        file = omega_file(infix, number, len(shards))
        types = {source.key(name, part): type_ for name in names for part, type_ in source.own_types(name).items()}
        described |= described_tensors(file, types, write_safetensors(folder / file, types, source.read))
    entries = {name: {part: described[source.key(name, part)] for part in source.types(name)} for name in importance}
    if len(shards) > 1:
        weight_map = {part.key: part.file for parts in entries.values() for part in parts.values()}
        size = sum((folder / file).stat().st_size for file in set(weight_map.values()))
        write_json(folder / index_file(infix), {"metadata": {"total_size": size}, "weight_map": weight_map})
    return entries


class _Parts:
    """The parts of a map's weights in a storage format, converted one weight at a time when they are asked for.

    What a format may share, several weights with the same bytes have once: in the file of the first of them, which is the
    others', too, unless a single transformer block takes more than one file.
    """

    def __init__(self, importance: ImportanceValues, storage: str) -> None:
        self._importance = importance
        self._format = storage_format(storage)
        self._types = {name: importance.stored(name).part_types_as(self._format) for name in importance}
        self._owners = self._shared()
        self._homes = {self.key(name, part): (name, part) for name in importance for part in self.own_types(name)}
        self._latest: tuple[str, Importance] | None = None

    def _shared(self) -> dict[tuple[str, str], str]:
        """By weight and part, the first weight that has the same bytes there."""
        digests: dict[Hashable, str] = {}
        first: dict[Hashable, str] = {}
        owners = {}
        for name in self._importance:
            stored = self._importance.stored(name)
            for part, place in identities(stored).items():
                tensor = stored.parts[part]
                if part in self._format.shareable and part in self._types[name] and tensor.numel() > 0:
                    if place not in digests:
                        digests[place] = tensor_digest(tensor)
                    digest = digests[place]
                    owners[name, part] = first.setdefault((part, tensor.dtype, tuple(tensor.shape), digest), name)
        return owners

    def types(self, name: str) -> dict[str, PartType]:
        return self._types[name]

    def own_types(self, name: str) -> dict[str, PartType]:
        """`types` of what no weight before this one has."""
        return {
            part: type_ for part, type_ in self._types[name].items() if self._owners.get((name, part), name) == name
        }

    def key(self, name: str, part: str) -> str:
        """A part's key in the safetensors file: the weight's own name if its format has one part only."""
        owner = self._owners.get((name, part), name)
        return f"{owner}.{part}" if part else owner

    def nbytes(self, name: str) -> int:
        return sum(math.prod(shape) * dtype.itemsize for dtype, shape in self.own_types(name).values())

    def read(self, key: str) -> torch.Tensor:
        name, part = self._homes[key]
        if self._latest is None or self._latest[0] != name:
            self._latest = None  # let go of the last one before the next is made
            self._latest = (name, converted(name, self._importance.stored(name), self._format))
        return self._latest[1].parts[part]


def plan_shards(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """Weights by file: files of `limit` bytes at most, and no transformer block in two files (unless it is larger).

    Whoever wants some blocks alone then fetches little else.
    """
    shards: list[list[str]] = [[]]
    filled = 0
    blocks: dict[str, list[str]] = {}
    for name in sizes:
        blocks.setdefault(block_name(name), []).append(name)
    for names in blocks.values():
        whole = sum(sizes[name] for name in names)
        for group in [names] if whole <= limit else [[name] for name in names]:
            size = sum(sizes[name] for name in group)
            if shards[-1] and filled + size > limit:
                shards.append([])
                filled = 0
            shards[-1] += group
            filled += size
    return shards
