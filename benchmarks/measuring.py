"""Time and memory, measured side by side: what is compared takes turns, so that a noisy machine disturbs both alike."""

from __future__ import annotations

import gc
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def machine(device: str) -> dict[str, Any]:
    facts = {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device == "cuda":
        import triton

        facts |= {"triton": triton.__version__, "cuda": torch.version.cuda}
    return facts


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(device: str, work: Callable[[], Any]) -> float:
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def processor_seconds(work: Callable[[], Any]) -> float:
    """Seconds of processor time, of all threads: what other processes take of a shared machine is not in it."""
    start = time.process_time()
    work()
    return time.process_time() - start


def take_turns(
    device: str, rounds: int, works: Mapping[str, Callable[[], Any]], clock: Callable[..., float] | None = None
) -> dict[str, list[float]]:
    """Seconds of every work in every round, after one round to warm up; by `clock` (work), if not by the wall's."""
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(seconds(device, work) if clock is None else clock(work))
    return times


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "runs": len(values)}


def ratios(numerator: list[float], denominator: list[float]) -> dict[str, float]:
    """Spread of the rounds' ratios, with the ratio of the medians."""
    each = [x / y for x, y in zip(numerator, denominator, strict=True)]
    return spread(each) | {"of_medians": statistics.median(numerator) / statistics.median(denominator)}


def peak_bytes(device: str, work: Callable[[], Any]) -> int:
    """The most that `work` holds beyond what was held before, from the allocator's own count."""
    gc.collect()
    if device == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak
