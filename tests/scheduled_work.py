"""What workers are given in `test_scheduling`: light to import, since each of them imports it anew."""

from __future__ import annotations

import logging
import os
import signal
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


def save_when_told(folder: Path) -> dict[str, Any]:
    """Go on until Ctrl-C, and save then; a training does so at the end of its step."""
    logging.getLogger("alora_trainer.tests").info("step 1 of many")
    told: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: told.append(number))
    try:
        (folder / "started").touch()
        end = time.monotonic() + 60
        while not told and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(0.2)  # as a step takes
        (folder / "saved").write_text(str(len(told)))
    finally:
        signal.signal(signal.SIGINT, before)
    raise KeyboardInterrupt
