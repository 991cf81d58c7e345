"""theta* of a training without adapters, in a map's folder: the weights themselves, read as the work of a stranger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from alora_trainer.artefact.entries import (
    MapConfig,
    ThetaEntries,
    WeightEntry,
    checked_tensor,
    checked_text,
    demand,
    described_tensors,
)
from alora_trainer.artefact.files import REFERENCE_FILE, check_inside, shown
from alora_trainer.artefact.tensor_file import read_header, read_tensor
from alora_trainer.artefact.theta_storage import ThetaReader, ThetaStorage
from alora_trainer.basics.safetensors_writer import write_safetensors
from alora_trainer.basics.sizes import size_text
from alora_trainer.errors import ALoRAError
from alora_trainer.weights.reference import FullReference
from alora_trainer.weights.theta import FullTheta, Theta

_DTYPES = ("float64", "float32", "bfloat16", "float16")


class ReferenceStorage(ThetaStorage):
    """The weights themselves, in a file of ours: a tensor (m, n) a weight, by its name."""

    section = "reference"
    files = (REFERENCE_FILE,)
    library = relation = None
    tags = ()

    def write(self, folder: Path, theta: Theta) -> ThetaEntries:
        types: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
            name: (reference.weight.dtype, reference.shape) for name, reference in theta.items()
        }
        digests = write_safetensors(folder / REFERENCE_FILE, types, lambda name: theta[name].weight)
        return ThetaEntries(FullTheta, described_tensors(REFERENCE_FILE, types, digests))

    def weight_entry(self, reference: FullReference, base_sample: list[float] | None) -> WeightEntry:
        return WeightEntry(reference.shape, None, base_sample)

    def section_content(self, theta: ThetaEntries) -> dict[str, Any]:
        return {name: asdict(entry) for name, entry in theta.tensors.items()}

    def parse_section(self, content: Mapping[str, Any]) -> ThetaEntries:
        tensors = {checked_text(name): checked_tensor(entry) for name, entry in content.items()}
        return ThetaEntries(FullTheta, tensors)

    def check(self, config: MapConfig) -> None:
        demand(REFERENCE_FILE in config.files, "the reference's file is not listed")
        demand(
            all(weight.scaling is None for weight in config.weights.values()),
            "a weight that was tuned itself has a scaling",
        )
        demand(set(config.theta.tensors) == set(config.weights), "the reference has other weights")
        for name, entry in config.theta.tensors.items():
            demand((entry.file, entry.key) == (REFERENCE_FILE, name), "a reference is somewhere else")
            demand(entry.shape == config.weights[name].shape, "a reference has another shape than its weight")
            demand(entry.dtype in _DTYPES, f"a reference is of the type {shown(entry.dtype)}")

    def open(self, folder: Path, config: MapConfig) -> ThetaReader:
        return _ReferenceReader(folder, config)

    def rewritten_for_public(self, folder: Path, target: Path, base_model: str | None) -> dict[str, Path]:
        return {}

    def described(self, config: MapConfig) -> tuple[str, str]:
        return "theta*", f"the weights themselves, {size_text(config.files[REFERENCE_FILE])}"


class _ReferenceReader(ThetaReader):
    """Reads one weight after the other, when it is asked for."""

    def __init__(self, folder: Path, config: MapConfig) -> None:
        self._path = check_inside(folder, REFERENCE_FILE)
        self._entries = config.theta.tensors
        size = self._path.stat().st_size
        if size != config.files[REFERENCE_FILE]:
            raise ALoRAError(
                f"{self._path} has {size:,} bytes and should have {config.files[REFERENCE_FILE]:,}: it is torn or damaged, "
                "fetch or record the map again"
            )
        self._header = read_header(self._path)
        if set(self._header) != set(self._entries):
            raise ALoRAError(f"{self._path} has other tensors than the importance map's config names: fetch it again")

    def theta(self, names: Sequence[str]) -> FullTheta:
        return FullTheta({name: self._read(name) for name in names})

    def theta_of(self, name: str) -> FullTheta:
        return self.theta([name])

    def _read(self, name: str) -> FullReference:
        weight = read_tensor(self._path, self._header, self._entries[name])
        if not bool(torch.isfinite(weight).all()):
            raise ALoRAError(f"the weights of {name} in {REFERENCE_FILE} hold NaN or infinite values: record it again")
        return FullReference(weight)
