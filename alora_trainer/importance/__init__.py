"""Importance: how it is recorded (`recorder`, `estimators`, `fold`), and what it becomes (`map`, `files`)."""

from __future__ import annotations

from alora_trainer.importance.map import ImportanceInfo, ImportanceMap
from alora_trainer.importance.recorder import Recorder

__all__ = ["ImportanceInfo", "ImportanceMap", "Recorder"]
