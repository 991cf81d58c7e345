"""A cell: a few methods of a recipe under some settings, in a run folder that it may share, as one piece of work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from alora_trainer.basics.disk_errors import disk_errors
from alora_trainer.experiment.methods import Method, get_method
from alora_trainer.experiment.recipe.contents import CONTENTS, by_content
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.report.method_result import MethodResult
from alora_trainer.experiment.run.run import Run
from alora_trainer.experiment.run.scaled import scaled_results
from alora_trainer.experiment.run.scheduling.scheduler import WorkUnit
from alora_trainer.experiment.run.stage import Stage
from alora_trainer.experiment.run.training_checks import check_trainings

CELLS = "cells"  # the folder that remembers what cells are finished


@dataclass(frozen=True)
class Cell:
    """A piece of a sweep that one process works on.

    Attributes:
        recipe: the YAML file.
        name: unique in the sweep; names its file.
        folder: the run folder, relative to the sweep's.
        overrides: what is set over the recipe (dotted name -> value), the seed and the methods among it.
        methods: what is trained and evaluated in it; none if it only records.
        variant: names the values of the swept settings in method folders and results; None where nothing depends on them.
        after: the cells that must be finished before.
    """

    recipe: str
    name: str
    folder: str
    overrides: Mapping[str, Any]
    methods: tuple[str, ...]
    variant: str | None
    after: tuple[str, ...] = ()

    def run(self, folder: Path, *, overwrite: bool = False) -> Run:
        """The run that the cell works in, `folder` being the sweep's."""
        return Run(
            load_recipe(self.recipe, self.overrides), folder / self.folder, overwrite=overwrite, variant=self.variant
        )

    @property
    def trained(self) -> list[Method]:
        """Its methods."""
        return [get_method(name) for name in self.methods]

    @property
    def size(self) -> int:
        """How much work it is, in trainings; one that comes first records, too."""
        return len(self.methods) + (0 if self.after else 1)

    def check(self, folder: Path, *, overwrite: bool = False) -> None:
        """Refuse what cannot be done, `folder` being the sweep's, before anything is written in it.

        Raises:
            ALoRAError: as `run_recipe`, before its first method.
        """
        run = self.run(folder, overwrite=overwrite)
        if self.remembered(folder).finished(overwrite=overwrite) is None:
            recording = run.recipe.needs_recording
            check_trainings(run.recipe, self.trained, recording=recording)
            run.check(*self.trained, recording=recording, scores=True)

    def remembered(self, folder: Path) -> Stage:
        """What the cell's outcome depends on, and where the sweep in `folder` keeps it."""
        resolved = load_recipe(self.recipe, self.overrides).resolved()
        by_contents = {section: by_content(section, value, CONTENTS) for section, value in resolved.items()}
        described = {key: value for key, value in asdict(self).items() if key in ("name", "methods", "variant")}
        settings = {"cell": described, "recipe": by_contents | {"methods": None}}
        return Stage(folder / CELLS / self.name, settings, "outcome")


def cell_unit(cell: Cell, folder: Path, *, overwrite: bool = False) -> WorkUnit:
    """A cell of the sweep in `folder` as the scheduler wants it."""
    work = partial(work_on_cell, cell, folder, overwrite=overwrite)
    return WorkUnit(cell.name, cell.remembered(folder), work, cell.after, cell.size)


def work_on_cell(cell: Cell, folder: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Train and evaluate a cell's methods.

    Args:
        cell: the cell.
        folder: the sweep's.
        overwrite: make anew what other settings made.

    Returns:
        ``entries``, what results.json is to say of each method, by the names that `Run.place` gives them; and ``overlap``.

    Raises:
        ALoRAError: as `run_recipe`.
    """
    disable_progress_bar()
    run = cell.run(folder, overwrite=overwrite)
    with disk_errors(run.folder):
        run.prepare_data()
        overlap = None
        if run.recipe.needs_recording:
            run.record()
            overlap = run.overlap()
        entries: dict[str, MethodResult] = {}
        for method in cell.trained:
            entries[run.steps.place(method)] = run.method(method)
            entries |= scaled_results(run, method)
    return {"entries": {name: entry.to_json() for name, entry in entries.items()}, "overlap": overlap}


def results_of_cell(outcome: Mapping[str, Any]) -> dict[str, MethodResult]:
    """The results in an outcome of `work_on_cell`, by the methods' names in the run."""
    return {name: MethodResult.from_json(entry, name) for name, entry in outcome["entries"].items()}
