"""What a stage costs: seconds, and the most memory that was held during it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil
import torch

_SAMPLE_SECONDS = 0.02


@dataclass(frozen=True)
class Cost:
    """Seconds of wall-clock time and peak bytes (what is counted is `Meter`'s to say)."""

    seconds: float = 0.0
    peak_bytes: int = 0

    def __add__(self, later: Cost) -> Cost:
        """The cost of one stage run in two parts."""
        return Cost(self.seconds + later.seconds, max(self.peak_bytes, later.peak_bytes))


class Meter:
    """Measures the `Cost` of a ``with`` block; `cost` may be read during it and after.

    With a GPU, the bytes are PyTorch's peak of allocated device memory. Without one they are the peak of the process's
    resident set, which includes the Python libraries and whatever was loaded before the block: on Linux the kernel's own
    high-water mark, reset at the start; elsewhere, or where that cannot be reset, the largest of samples taken every 20 ms.
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._sampled = 0
        self._stop = threading.Event()
        self._sampler: threading.Thread | None = None
        self._start = 0.0
        self._final: Cost | None = None

    def __enter__(self) -> Meter:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        elif not _reset_high_water_mark():
            self._sampler = threading.Thread(target=self._sample, daemon=True)
            self._sampler.start()
        self._start = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._final = self.cost
        self._stop.set()
        if self._sampler is not None:
            self._sampler.join()

    @property
    def cost(self) -> Cost:
        """The cost so far, or of the whole block after its end."""
        if self._final is not None:
            return self._final
        return Cost(time.perf_counter() - self._start, self._peak())

    def _peak(self) -> int:
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
        if self._sampler is None:
            return _high_water_mark()
        return max(self._sampled, self._process.memory_info().rss)

    def _sample(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            self._sampled = max(self._sampled, self._process.memory_info().rss)


def _reset_high_water_mark() -> bool:
    """Reset the peak of the resident set (proc(5), /proc/pid/clear_refs); False where the system cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return _high_water_mark() > 0
    except OSError:
        return False


def _high_water_mark() -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
