"""Where Omega lives between two evaluations of the penalty: beside the weights, or in host memory and streamed from there.

Streaming keeps two staging buffers, each as large as the largest weight's Omega: while one weight is computed, the next one's
Omega is on its way. On a GPU the copies run on a stream of their own from pinned memory; the host only enqueues them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from alora_trainer.importance.kinds.kind import Importance
from alora_trainer.importance.kinds.sharing import SharedParts, identities

_ALIGNMENT = 256  # bytes between the parts of an Omega in a staging buffer


class ResidentOmegas:
    """Every Omega on its weight's device, for good."""

    def __init__(self, omegas: Sequence[Importance], devices: Sequence[torch.device]) -> None:
        self._omegas = _brought(omegas, devices, lambda omega, device: omega.to(device))

    def in_order(self) -> Iterator[Importance]:
        """Every weight's Omega, on its weight's device."""
        yield from self._omegas


class StreamedOmegas:
    """Every Omega in host memory (pinned, if its weight is on a GPU), on the device only while it is used."""

    def __init__(self, omegas: Sequence[Importance], devices: Sequence[torch.device]) -> None:
        self._omegas = _brought(omegas, devices, _in_host_memory)
        self._devices = list(devices)
        self._stages = {device: _Stages(device, self._largest(device)) for device in dict.fromkeys(devices)}

    def _largest(self, device: torch.device) -> int:
        return max(_staged_bytes(o) for o, d in zip(self._omegas, self._devices, strict=True) if d == device)

    def in_order(self) -> Iterator[Importance]:
        """Every weight's Omega, on its weight's device; valid until the next but one is asked for."""
        following = self._send(0)
        for number in range(len(self._omegas)):
            staged, following = following, self._send(number + 1)
            assert staged is not None
            stage, omega = staged
            stage.wait_until_arrived()
            yield omega
            stage.release()

    def _send(self, number: int) -> tuple[_Stage, Importance] | None:
        if number >= len(self._omegas):
            return None
        stage = self._stages[self._devices[number]].next()
        return stage, stage.send(self._omegas[number])


class _Stages:
    """Two buffers on one device, used in turn."""

    def __init__(self, device: torch.device, size: int) -> None:
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._stages = [_Stage(device, size, stream) for _ in range(2)]
        self._turn = 0

    def next(self) -> _Stage:
        self._turn += 1
        return self._stages[self._turn % 2]


class _Stage:
    """One buffer: what is sent to it waits until what was there before has been used."""

    def __init__(self, device: torch.device, size: int, stream: Any) -> None:
        self._buffer = torch.empty(size, dtype=torch.uint8, device=device)
        self._stream = stream
        self._arrived = torch.cuda.Event() if stream is not None else None
        self._released = torch.cuda.Event() if stream is not None else None

    def send(self, omega: Importance) -> Importance:
        """Begin to copy `omega` here; the same as views of the buffer."""
        parts, start = {}, 0
        if self._stream is not None:
            self._stream.wait_event(self._released)
        with torch.cuda.stream(self._stream) if self._stream is not None else nullcontext():
            for name, part in omega.parts.items():
                parts[name] = self._buffer[start : start + part.nbytes].view(part.dtype).view(part.shape)
                parts[name].copy_(part, non_blocking=True)
                start += _aligned(part.nbytes)
        if self._arrived is not None:
            self._arrived.record(self._stream)
        return type(omega)(omega.shape, parts)

    def wait_until_arrived(self) -> None:
        """Let the present stream wait for the copy."""
        if self._arrived is not None:
            torch.cuda.current_stream(self._buffer.device).wait_event(self._arrived)

    def release(self) -> None:
        """What the present stream has been given to do was the last to read the buffer."""
        if self._released is not None:
            self._released.record(torch.cuda.current_stream(self._buffer.device))


def _brought(
    omegas: Sequence[Importance],
    devices: Sequence[torch.device],
    bring: Callable[[Importance, torch.device], Importance],
) -> list[Importance]:
    """Every Omega brought to where it lives for its device; what several have in common is brought once."""
    shared: dict[torch.device, SharedParts] = {device: SharedParts() for device in devices}
    return [
        shared[device].joined(bring(omega, device), identities(omega))
        for omega, device in zip(omegas, devices, strict=True)
    ]


def _in_host_memory(omega: Importance, device: torch.device) -> Importance:
    omega = omega.to("cpu")
    if device.type != "cuda":
        return omega
    return type(omega)(omega.shape, {name: part.pin_memory() for name, part in omega.parts.items()})


def _aligned(size: int) -> int:
    return math.ceil(size / _ALIGNMENT) * _ALIGNMENT


def _staged_bytes(omega: Importance) -> int:
    return sum(_aligned(part.nbytes) for part in omega.parts.values())
