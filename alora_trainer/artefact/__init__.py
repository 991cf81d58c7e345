"""A map outside of memory: the file format, the Hub, the cards; `ImportanceMap` is the values plus these doors."""

from __future__ import annotations

from alora_trainer.artefact.importance_map import ImportanceMap

__all__ = ["ImportanceMap"]
