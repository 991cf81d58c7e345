"""Studies on real data: many stage Bs that share a stage A per seed, each one a run of the package's own recipes.

What is finished is not done again (`alora_trainer.experiment.run` sees to that), so that a study that was stopped goes on,
and a study with more cases does only what is new. Its folder is thrown away when the results are committed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """One stage B: a method under some settings, for one seed."""

    name: str
    seed: int
    method: str
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A recipe that all cases start from, with settings over it, and a folder for the runs."""

    recipe: Path
    settings: Mapping[str, str]
    folder: Path

    def overrides(self, seed: int, settings: Mapping[str, str]) -> dict[str, str]:
        return {**self.settings, **settings, "seed": str(seed)}

    def folder_of(self, seed: int, name: str) -> Path:
        return self.folder / f"seed-{seed}" / name


def run_study(study: Study, cases: Sequence[Case], workers: int) -> list[dict[str, Any]]:
    """All cases, and before them stage A of every seed, in `workers` processes of one thread each.

    Returns:
        one entry a case, in their order: name, seed, method, settings, figures, and `reference`, those of theta*.
    """
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        seeds = sorted({case.seed for case in cases})
        references = dict(zip(seeds, pool.map(_stage_a, [study] * len(seeds), seeds), strict=True))
        waiting = {pool.submit(_stage_b, study, case): case for case in cases}
        entries: dict[Case, dict[str, Any]] = {}
        for done in as_completed(waiting):
            case = waiting[done]
            entries[_key(case)] = {
                "name": case.name,
                "seed": case.seed,
                "method": case.method,
                "settings": dict(case.settings),
                "reference": references[case.seed],
            } | done.result()
            print(f"{len(entries)}/{len(cases)}: {case.name}, seed {case.seed}", flush=True)
    return [entries[_key(case)] for case in cases]


def _key(case: Case) -> Any:
    return case.name, case.seed


def _stage_a(study: Study, seed: int) -> dict[str, float]:
    import torch

    from alora_trainer.experiment.recipe.reading import load_recipe
    from alora_trainer.experiment.run.run import Run
    from alora_trainer.experiment.run.stage import digest

    torch.set_num_threads(1)
    run = Run(load_recipe(study.recipe, study.overrides(seed, {})), study.folder_of(seed, "stage-a"))
    cost = run.record()
    map_folder = run.folder / "record" / "map"
    return _figures(run.evaluate("reference", digest({"seed": seed}), map_folder)) | {"seconds": cost["seconds"]}


def _stage_b(study: Study, case: Case) -> dict[str, Any]:
    import torch

    from alora_trainer.experiment.methods import get_method
    from alora_trainer.experiment.recipe.reading import load_recipe
    from alora_trainer.experiment.run.run import Run

    torch.set_num_threads(1)
    recipe = load_recipe(study.recipe, study.overrides(case.seed, case.settings))
    method = get_method(case.method)
    shared = str(study.folder_of(case.seed, "stage-a") / "record" / "map") if method.needs_recording else None
    entry = Run(recipe, study.folder_of(case.seed, case.name), importance=shared).method(method)
    figures: dict[str, Any] = _figures(entry) | {"seconds": entry["train"]["seconds"]}
    if "probe" in entry["train"]:
        figures["probe"] = entry["train"]["probe"]
    return figures


def _figures(entry: Mapping[str, Any]) -> dict[str, float]:
    """General cross-entropy (nats a token) and perplexity, and the task's accuracy."""
    (task,) = entry["tasks"].values()
    return {
        "cross_entropy": entry["general"]["token_cross_entropy"],
        "perplexity": entry["general"]["token_perplexity"],
        "accuracy": task["acc"],
        "items": task["items"],
    }


def rise(entry: Mapping[str, Any]) -> float:
    """How much general cross-entropy on the test text rose over theta*, as a share of it."""
    return entry["cross_entropy"] / entry["reference"]["cross_entropy"] - 1


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
    from alora_trainer.basics.files import write_json
    from alora_trainer.experiment.report.results import environment

    head = {"schema": 1, "command": command, "recipe": study.recipe.name, "settings": dict(study.settings)}
    write_json(path, head | {"environment": environment() | {"threads": 1}} | report)
    print(json.dumps(report.get("summary"), indent=1))
    print(f"written: {path}")
