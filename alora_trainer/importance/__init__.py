"""Importance: its kinds (`kinds`), how each is recorded (`recording`), and the values of a whole model with their algebra.

`ImportanceMap`, which is these values plus files and the Hub, stands above, in `artefact`.
"""

from __future__ import annotations

from alora_trainer.importance.importance_values import ImportanceValues
from alora_trainer.importance.recording.recorder import Recorder

__all__ = ["ImportanceValues", "Recorder"]
