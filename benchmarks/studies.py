"""Studies on real data: many stage Bs that share a stage A per seed, each one a cell of the package's own scheduler.

What is finished is not done again, so that a study that was stopped goes on, and a study with more cases does only what is
new. Its folder is thrown away when the results are committed.
"""

from __future__ import annotations

import json
import os
import shlex
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from alora_trainer.basics.files import read_json, write_json
from alora_trainer.basics.output import configure_output
from alora_trainer.basics.scores import Score
from alora_trainer.experiment.methods import get_method
from alora_trainer.experiment.report.results import environment
from alora_trainer.experiment.run.scheduling.scheduler import Scheduler, WorkUnit
from alora_trainer.experiment.run.scheduling.workers import Workers
from alora_trainer.experiment.run.stage import digest
from alora_trainer.experiment.run.sweep.cell import Cell, cell_unit, results_of_cell


@dataclass(frozen=True)
class Case:
    """One stage B: a method under some settings, for one seed."""

    name: str
    seed: int
    method: str
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A recipe that all cases start from, with settings over it, and a folder for the runs, one a seed."""

    recipe: Path
    settings: Mapping[str, str]
    folder: Path

    def overrides(self, seed: int, settings: Mapping[str, str]) -> dict[str, str]:
        return {**self.settings, **settings, "seed": str(seed)}

    def recording(self, seed: int) -> Cell:
        """Stage A alone."""
        run, overrides = f"seed-{seed}", self.overrides(seed, {"methods": "alora"})
        return Cell(str(self.recipe), f"{run},recording", run, overrides, (), None)

    def cell(self, case: Case, after: tuple[str, ...] = ()) -> Cell:
        """A case's stage B, in the seed's run."""
        run, overrides = f"seed-{case.seed}", self.overrides(case.seed, {**case.settings, "methods": case.method})
        variant = case.name if case.settings else None
        return Cell(str(self.recipe), f"{run},{case.name}", run, overrides, (case.method,), variant, after)

    def map_folder(self, seed: int) -> Path:
        """The importance map that stage A recorded."""
        return self.folder / f"seed-{seed}" / "record" / "map"

    def training_folder(self, case: Case) -> Path:
        """Where a case's checkpoints and adapter are."""
        run = self.cell(case).run(self.folder)
        return run.folder / run.steps.place(get_method(case.method))


def run_study(study: Study, cases: Sequence[Case], workers: int) -> list[dict[str, Any]]:
    """All cases, and before them stage A of every seed, in `workers` processes of one thread each.

    Returns:
        one entry a case, in their order: name, seed, method, settings, figures, and `reference`, those of theta*.
    """
    configure_output()
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    recordings = {seed: study.recording(seed) for seed in sorted({case.seed for case in cases})}
    units = [
        WorkUnit(cell.name, cell.remembered(study.folder), partial(_record, study, seed))
        for seed, cell in recordings.items()
    ]
    names = {}
    for case in cases:
        cell = study.cell(case, (recordings[case.seed].name,))
        names[case.name, case.seed] = cell.name
        units.append(cell_unit(cell, study.folder))
    scheduler = Scheduler(units, name="study")
    scheduler.work(Workers(workers), study.folder)
    entries = []
    for case in cases:
        (result,) = results_of_cell(scheduler.outcomes[names[case.name, case.seed]]).values()
        assert result.train is not None
        entry = {
            "name": case.name,
            "seed": case.seed,
            "method": case.method,
            "settings": dict(case.settings),
            "reference": scheduler.outcomes[recordings[case.seed].name],
            **_figures(result),
            "seconds": result.train.seconds,
        }
        entries.append(entry if result.train.probe is None else entry | {"probe": result.train.probe})
    return entries


def _record(study: Study, seed: int) -> dict[str, Any]:
    """Stage A of a seed, and what theta* can do."""
    run = study.recording(seed).run(study.folder)
    run.prepare_data()
    cost = run.record()
    run.overlap()  # once, before the cases look for it at the same time
    return _figures(run.evaluate("reference", digest({"seed": seed}), study.map_folder(seed))) | {
        "seconds": cost["seconds"]
    }


def _figures(score: Score) -> dict[str, Any]:
    """General cross-entropy (nats a token) and perplexity, and the task's accuracy."""
    (task,) = score.tasks.values()
    return {
        "cross_entropy": score.general.token_cross_entropy,
        "perplexity": score.general.token_perplexity,
        "accuracy": task.acc,
        "items": task.items,
    }


def rise(entry: Mapping[str, Any]) -> float:
    """How much general cross-entropy on the test text rose over theta*, as a share of it."""
    return entry["cross_entropy"] / entry["reference"]["cross_entropy"] - 1


def taken_over(path: Path, asked: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, Any]:
    """An earlier report, to go on from; empty unless it asked for the same and had the same libraries.

    Args:
        path: of its JSON, which may not be there.
        asked: all settings that its figures depend on.
        here: what `environment` says now, and the threads.
    """
    report = read_json(path) or {}
    there = report.get("environment", {})
    # The platform's name has the kernel's number in it.
    same = all(there.get(key) == here[key] for key in here if key != "platform")
    return dict(report) if same and report.get("asked") == json.loads(json.dumps(asked)) else {}


def report_head(here: Mapping[str, Any]) -> dict[str, Any]:
    """What every report begins with: the command that was given, without any path of this machine, and `here`.

    Args:
        here: what `environment` says, and the threads.
    """
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    return {"schema": 1, "command": command, "environment": dict(here)}


def spread(values: Iterable[float]) -> dict[str, Any]:
    """Mean, and the sample's standard deviation, of one value a seed."""
    found = list(values)
    return {
        "mean": statistics.fmean(found),
        "standard_deviation": statistics.stdev(found) if len(found) > 1 else None,
        "seeds": len(found),
    }


def write_report(path: Path, study: Study, command: str, report: Mapping[str, Any]) -> None:
    """Write the study's JSON, whole or not at all, without any path of this machine."""
    head = {"schema": 1, "command": command, "recipe": study.recipe.name, "settings": dict(study.settings)}
    write_json(path, head | {"environment": environment() | {"threads": 1}} | report)
    print(json.dumps(report.get("summary"), indent=1))
    print(f"written: {path}")
