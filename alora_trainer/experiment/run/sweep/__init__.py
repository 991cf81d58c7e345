"""A grid over settings and seeds of one recipe or several."""

from __future__ import annotations

from alora_trainer.experiment.run.sweep.file import read_sweep_file
from alora_trainer.experiment.run.sweep.grid import Cell, Grid, parse_over, parse_seeds, plan
from alora_trainer.experiment.run.sweep.schedule import run_sweep

__all__ = ["Cell", "Grid", "parse_over", "parse_seeds", "plan", "read_sweep_file", "run_sweep"]
