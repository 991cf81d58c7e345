"""Devices: peak arithmetic, memory and bandwidth from their makers' data sheets, or measured on this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass

import psutil
import torch

from alora_trainer.errors import ALoRAError

# Share of the peak that a LoRA training reaches in the transformers library, as a rule of thumb: it decides the times of a
# plan, never its bytes.
EFFICIENCY = 0.4
# What CUDA's context and the libraries' workspaces take, whatever the model.
CUDA_OVERHEAD_BYTES = 600 << 20


@dataclass(frozen=True)
class Device:
    """One device.

    Attributes:
        name: as people write it.
        flops: a second, dense, in bfloat16 with float32 accumulation.
        bytes_per_second: of its memory.
        memory_bytes: what it has.
        efficiency: share of `flops` that is counted on.
        overhead_bytes: taken before the first tensor.
        host: the device is the processor, and its memory the host's.
    """

    name: str
    flops: float
    bytes_per_second: float
    memory_bytes: int
    efficiency: float = EFFICIENCY
    overhead_bytes: int = CUDA_OVERHEAD_BYTES
    host: bool = False


# NVIDIA's data sheets: H100 SXM5, A800 and A100 80 GB SXM, GeForce RTX 4090.
DEVICES = {
    device.name: device
    for device in (
        Device("H100", 989e12, 3.35e12, 80 * 10**9),
        Device("A800", 312e12, 2.039e12, 80 * 10**9),
        Device("A100", 312e12, 2.039e12, 80 * 10**9),
        Device("4090", 165.2e12, 1.008e12, 24 * 10**9),
    )
}


def get_device(name: str) -> Device:
    """The device of that name; "probe" measures this machine.

    Raises:
        ALoRAError: it is not in the table.
    """
    if name == "probe":
        return probe()
    if name not in DEVICES:
        raise ALoRAError(f"the device {name!r} is not in the table: use one of {', '.join(DEVICES)}, or probe")
    return DEVICES[name]


def probe(seconds: float = 0.5) -> Device:
    """This machine's GPU (or its processor), measured with a matrix product and a copy for about `seconds` each."""
    cuda = torch.cuda.is_available()
    where = "cuda" if cuda else "cpu"
    size, dtype = (8192, torch.bfloat16) if cuda else (1024, torch.float32)
    matrix = torch.randn(size, size, device=where).to(dtype)
    block = torch.empty((1 << 28) if cuda else (1 << 25), dtype=torch.uint8, device=where)
    other = torch.empty_like(block)
    products = _rate(lambda: torch.mm(matrix, matrix), seconds, cuda)
    copies = _rate(lambda: other.copy_(block), seconds, cuda)
    memory = torch.cuda.get_device_properties(0).total_memory if cuda else psutil.virtual_memory().total
    return Device(
        name=torch.cuda.get_device_name() if cuda else "this machine's processor",
        flops=products * 2 * size**3,
        bytes_per_second=copies * 2 * block.numel(),
        memory_bytes=int(memory),
        efficiency=0.8,  # of what the plain product reaches: the rest of a step is no product
        overhead_bytes=CUDA_OVERHEAD_BYTES if cuda else 0,
        host=not cuda,
    )


def _rate(work: object, seconds: float, cuda: bool) -> float:
    """How often a second."""
    assert callable(work)
    work()
    count, start = 0, time.perf_counter()
    while True:
        work()
        count += 1
        if cuda:
            torch.cuda.synchronize()
        passed = time.perf_counter() - start
        if passed > seconds:
            return count / passed
