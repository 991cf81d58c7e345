"""Safetensors files, written tensor by tensor, so that saving never holds a second copy of a map.

The format (https://github.com/huggingface/safetensors#format): eight bytes with the header's length, the header as JSON, the
tensors' bytes one after the other. ``safetensors.torch.save_file`` writes the same and copies all tensors first.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

# The names of dtypes in a safetensors file.
DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
}
_CHUNK = 1 << 26


def write_safetensors(
    path: Path,
    types: Mapping[str, tuple[torch.dtype, Sequence[int]]],
    read: Callable[[str], torch.Tensor],
    metadata: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Write tensors to `path`, larger element sizes first so that all stay aligned, and wait until the disk has them.

    Args:
        path: the file; it is written in place, so let it be a temporary one.
        types: dtype and shape of every tensor, by name.
        read: gives one tensor, on any device; called once a tensor, in the order of the file.
        metadata: strings for the header.

    Returns:
        the sha256 of every tensor's bytes, by name.
    """
    names = sorted(types, key=lambda name: (-types[name][0].itemsize, name))
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offset = 0
    for name in names:
        dtype, shape = types[name]
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    digests = {}
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for name in names:
            tensor = read(name)
            if (tensor.dtype, tuple(tensor.shape)) != (types[name][0], tuple(types[name][1])):
                raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not {types[name]} as announced")
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
    types = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    write_safetensors(path, types, tensors.__getitem__, metadata)


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor in host memory, without a copy if it is there already."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data.cast("B")


def tensor_digest(tensor: torch.Tensor) -> str:
    """sha256 of a tensor's bytes."""
    return hashlib.sha256(tensor_bytes(tensor)).hexdigest()
