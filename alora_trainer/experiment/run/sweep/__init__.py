"""A grid over settings and seeds of one recipe or several."""

from __future__ import annotations

from alora_trainer.experiment.run.sweep.cell import Cell
from alora_trainer.experiment.run.sweep.grid import Grid, cells_of, parse_over, parse_seeds
from alora_trainer.experiment.run.sweep.sweep_file import read_sweep_file
from alora_trainer.experiment.run.sweep.whole_sweep import run_sweep

__all__ = ["Cell", "Grid", "cells_of", "parse_over", "parse_seeds", "read_sweep_file", "run_sweep"]
