"""One tensor out of a safetensors file, after its header and before its checksum has been believed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.config_file import TensorEntry
from alora_trainer.importance.files import CONFIG_FILE
from alora_trainer.importance.safetensors_stream import TensorHeader, tensor_digest


def check_header(path: Path, header: Mapping[str, TensorHeader], entry: TensorEntry) -> None:
    """Raise ALoRAError unless a file's header announces the tensor as the map's config describes it."""
    found = header.get(entry.key)
    if found is None:
        raise ALoRAError(f"{entry.key} is not in {path}: the importance map is not whole, fetch it again")
    if (found.dtype, found.shape) != (entry.dtype, entry.shape):
        raise ALoRAError(
            f"{entry.key} is {found.dtype} {list(found.shape)} in {path} and {entry.dtype} {list(entry.shape)} in "
            f"{CONFIG_FILE}: fetch or record it again"
        )


def read_tensor(path: Path, header: Mapping[str, TensorHeader], entry: TensorEntry) -> torch.Tensor:
    """The tensor that `entry` describes; nothing is allocated for one of another size.

    Raises:
        ALoRAError: it is missing, has another dtype or shape, or does not match its checksum.
    """
    check_header(path, header, entry)
    try:
        with safe_open(path, framework="pt") as file:
            tensor = file.get_tensor(entry.key)
    except SafetensorError as error:
        raise ALoRAError(f"{path} is damaged ({error}): fetch or record the map again") from error
    if tensor_digest(tensor) != entry.sha256:
        raise ALoRAError(f"{entry.key} in {path} does not match its checksum: fetch or record the map again")
    return tensor
