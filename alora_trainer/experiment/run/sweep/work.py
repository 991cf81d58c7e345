"""What a worker process of a sweep does with one cell."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from pathlib import Path
from typing import Any

from alora_trainer.experiment.run.sweep.grid import Cell


def prepare_worker(workers: int) -> None:
    """Called once in every worker: as many threads as are its share, and only warnings on the screen that all share.

    Who sets OMP_NUM_THREADS has said already how many threads one process is to have.
    """
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()
    os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported, which nothing has done yet
    import torch

    from alora_trainer.basics.output import configure_output

    configure_output()
    logging.getLogger("alora_trainer").setLevel(logging.WARNING)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))


def _end_with_the_sweep() -> None:
    """Without the process that started it, a worker would go on writing where the next sweep of the folder writes, too."""
    sweep = multiprocessing.parent_process()
    if sweep is not None:
        sweep.join()
        os.kill(os.getpid(), signal.SIGTERM)


def work_on(cell: Cell, folder: str, overwrite: bool) -> dict[str, Any]:
    """Train and evaluate a cell's methods.

    Returns:
        ``entries``, what results.json is to say of each, by the names that `Run.place` gives them; and ``overlap``.

    Raises:
        ALoRAError: as `run_recipe`.
    """
    from transformers.utils.logging import disable_progress_bar

    from alora_trainer.experiment.methods import get_method
    from alora_trainer.experiment.recipe.reading import load_recipe
    from alora_trainer.experiment.run.run import Run

    disable_progress_bar()
    recipe = load_recipe(cell.recipe, cell.overrides)
    run = Run(recipe, Path(folder) / cell.folder, overwrite=overwrite, variant=cell.variant)
    run.prepare_data()
    overlap = None
    if recipe.needs_recording:
        run.record()
        overlap = run.overlap()
    methods = [get_method(name) for name in cell.methods]
    entries = {run.place(method): run.method(method) for method in methods}
    return {"entries": entries, "overlap": overlap}
