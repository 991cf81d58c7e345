"""Safetensors files: written tensor by tensor, so that saving never holds a second copy of a map, and read header first.

The format (https://github.com/huggingface/safetensors#format): eight bytes with the header's length, the header as JSON, the
tensors' bytes one after the other. ``safetensors.torch.save_file`` writes the same and copies all tensors first.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.files import parse_json, shown

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
}
_CHUNK = 1 << 26
_TORCH_NAMES = {short: str(dtype).removeprefix("torch.") for dtype, short in _DTYPES.items()}
_SIZES = {short: dtype.itemsize for dtype, short in _DTYPES.items()}
# What the safetensors library itself accepts.
_LONGEST_HEADER = 100_000_000
# The header's length stands in front of it, in so many bytes.
PREFIX_BYTES = 8


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
    return TensorHeader(_TORCH_NAMES[dtype], tuple(shape))


def write_safetensors(
    path: Path,
    kinds: Mapping[str, tuple[torch.dtype, Sequence[int]]],
    read: Callable[[str], torch.Tensor],
    metadata: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Write tensors to `path`, larger element sizes first so that all stay aligned, and wait until the disk has them.

    Args:
        path: the file; it is written in place, so let it be a temporary one.
        kinds: dtype and shape of every tensor, by name.
        read: gives one tensor, on any device; called once a tensor, in the order of the file.
        metadata: strings for the header.

    Returns:
        the sha256 of every tensor's bytes, by name.
    """
    names = sorted(kinds, key=lambda name: (-kinds[name][0].itemsize, name))
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offset = 0
    for name in names:
        dtype, shape = kinds[name]
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    digests = {}
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for name in names:
            tensor = read(name)
            if (tensor.dtype, tuple(tensor.shape)) != (kinds[name][0], tuple(kinds[name][1])):
                raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not {kinds[name]} as announced")
            digest = hashlib.sha256()
            data = tensor_bytes(tensor)
            for start in range(0, len(data), _CHUNK):
                chunk = data[start : start + _CHUNK]
                file.write(chunk)
                digest.update(chunk)
            digests[name] = digest.hexdigest()
        file.flush()
        os.fsync(file.fileno())
    return digests


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """`write_safetensors` for tensors that are all there."""
    kinds = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    write_safetensors(path, kinds, tensors.__getitem__, metadata)


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor in host memory, without a copy if it is there already."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data.cast("B")


def tensor_digest(tensor: torch.Tensor) -> str:
    """sha256 of a tensor's bytes."""
    return hashlib.sha256(tensor_bytes(tensor)).hexdigest()
