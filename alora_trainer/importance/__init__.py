"""Importance: how it is recorded (`recorder`, `estimators`, `fold`), and what it becomes (`map`, `files`).

The names below are loaded when first used: weights know how a step of theirs is written down (`estimators`), and a map knows
weights.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alora_trainer.importance.info import ImportanceInfo
    from alora_trainer.importance.map import ImportanceMap
    from alora_trainer.importance.recorder import Recorder

_HOMES = {"ImportanceInfo": "info", "ImportanceMap": "map", "Recorder": "recorder"}
__all__ = ["ImportanceInfo", "ImportanceMap", "Recorder"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
