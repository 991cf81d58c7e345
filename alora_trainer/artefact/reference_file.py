"""theta* of a training without adapters, in a map's folder: the weights themselves, read as the work of a stranger."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from alora_trainer.artefact.config_file import MapConfig, TensorEntry
from alora_trainer.artefact.files import REFERENCE_FILE, check_inside
from alora_trainer.artefact.tensor_file import read_header, read_tensor
from alora_trainer.basics.safetensors_writer import write_safetensors
from alora_trainer.errors import ALoRAError
from alora_trainer.weights.reference import FullReference


def write_reference(folder: Path, references: Mapping[str, FullReference]) -> dict[str, TensorEntry]:
    """Write theta* by weight name; what the map's config says of its tensors."""
    kinds = {name: (reference.weight.dtype, reference.shape) for name, reference in references.items()}
    digests = write_safetensors(folder / REFERENCE_FILE, kinds, lambda name: references[name].weight)
    return {
        name: TensorEntry(REFERENCE_FILE, name, str(dtype).removeprefix("torch."), shape, digests[name])
        for name, (dtype, shape) in kinds.items()
    }


def reference_reader(folder: Path, config: MapConfig) -> Callable[[str], FullReference]:
    """What reads theta* of one weight after the other, every tensor of it checked.

    Raises:
        ALoRAError: the file is missing or damaged, or has other tensors than the map's config says; so does the reader, for
            a tensor that is not as described or not finite.
    """
    path = check_inside(folder, REFERENCE_FILE)
    size = path.stat().st_size
    if size != config.files[REFERENCE_FILE]:
        raise ALoRAError(
            f"{path} has {size:,} bytes and should have {config.files[REFERENCE_FILE]:,}: it is torn or damaged, fetch or "
            "record the map again"
        )
    header = read_header(path)
    if set(header) != set(config.reference):
        raise ALoRAError(f"{path} has other tensors than the importance map's config names: fetch it again")

    def read(name: str) -> FullReference:
        weight = read_tensor(path, header, config.reference[name])
        if not bool(torch.isfinite(weight).all()):
            raise ALoRAError(f"the weights of {name} in {REFERENCE_FILE} hold NaN or infinite values: record it again")
        return FullReference(weight)

    return read
