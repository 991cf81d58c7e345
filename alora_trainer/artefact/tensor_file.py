"""Reading a stranger's safetensors file: its header first, then one tensor at a time, each against its checksum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from alora_trainer.artefact.entries import TensorEntry
from alora_trainer.artefact.files import CONFIG_FILE, parse_json, shown
from alora_trainer.basics.safetensors_writer import DTYPE_NAMES, tensor_digest
from alora_trainer.errors import ALoRAError

# The header's length stands in front of it, in so many bytes.
PREFIX_BYTES = 8
# What the safetensors library itself accepts.
_LONGEST_HEADER = 100_000_000
# By the names of dtypes in a safetensors file.
TORCH_NAMES = {short: str(dtype).removeprefix("torch.") for dtype, short in DTYPE_NAMES.items()}
_SIZES = {short: dtype.itemsize for dtype, short in DTYPE_NAMES.items()}


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


@dataclass(frozen=True)
class TensorHeader:
    """What a file's header says of one tensor; `dtype` is torch's name for it."""

    dtype: str
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, TensorHeader]:
    """The tensors that a safetensors file announces, by name, after checking that they are what the file's bytes are.

    Raises:
        ALoRAError: the file is no safetensors file, is torn, or has tensors of kinds that no importance map has.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = header_length(file.read(PREFIX_BYTES), size, str(path))
        return parse_header(file.read(length), size, str(path))


def header_length(prefix: bytes, size: int, what: str) -> int:
    """The length of the header after the first `PREFIX_BYTES` of a file of `size` bytes; errors as `read_header`."""
    length = int.from_bytes(prefix, "little")
    if len(prefix) < PREFIX_BYTES or length > min(size - PREFIX_BYTES, _LONGEST_HEADER):
        raise ALoRAError(f"{what} is damaged (no safetensors header): fetch or record the map again")
    return length


def parse_header(header: bytes, size: int, what: str) -> dict[str, TensorHeader]:
    """`read_header` for the header's own bytes, of a file with `size` bytes in all."""
    try:
        if len(header) + PREFIX_BYTES > size:
            raise ValueError("the header ends in its middle")
        content = parse_json(header.decode("utf-8"))
        content.pop("__metadata__", None)
        tensors = {name: _tensor_header(entry) for name, entry in content.items()}
        spans = sorted(tuple(entry["data_offsets"]) for entry in content.values())
        end = 0
        for start, stop in spans:
            if start != end or stop < start:
                raise ValueError("tensors overlap or leave a gap")
            end = stop
        if len(header) + PREFIX_BYTES + end != size:
            raise ValueError(f"{end} bytes of tensors are announced and {size - len(header) - PREFIX_BYTES} are there")
    except (UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ALoRAError(
            f"{what} is damaged ({type(error).__name__}: {str(error)[:200]}): fetch or record the map again"
        ) from error
    return tensors


def _tensor_header(entry: Any) -> TensorHeader:
    dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in _SIZES:
        raise ValueError(f"no importance map has tensors of dtype {shown(dtype)}")
    if not all(type(number) is int and 0 <= number < 1 << 48 for number in (*shape, start, stop)):
        raise ValueError("a size is no whole number")
    if math.prod(shape) * _SIZES[dtype] != stop - start:
        raise ValueError("a tensor's shape and its bytes do not fit")
    return TensorHeader(TORCH_NAMES[dtype], tuple(shape))
