"""What workers are given in `test_scheduling`: light to import, since each of them imports it anew."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from alora_trainer.errors import ALoRAError


def meet(folder: Path, name: str, count: int) -> dict[str, Any]:
    """Wait until so many are at work at once; what this one's process is given."""
    (folder / name).touch()
    end = time.monotonic() + 60
    while len(list(folder.iterdir())) < count:
        if time.monotonic() > end:
            raise ALoRAError(f"{name} was left alone")
        time.sleep(0.02)
    return {"gpu": os.environ.get("CUDA_VISIBLE_DEVICES"), "process": os.getpid()}


def refuse() -> dict[str, Any]:
    raise ALoRAError("this cannot be done")


def break_down() -> dict[str, Any]:
    raise ValueError("a fault of the program")
