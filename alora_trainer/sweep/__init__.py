"""A grid over settings and seeds of one recipe."""

from __future__ import annotations

from alora_trainer.sweep.grid import Cell, parse_over, parse_seeds, plan
from alora_trainer.sweep.schedule import run_sweep

__all__ = ["Cell", "parse_over", "parse_seeds", "plan", "run_sweep"]
