"""Finished runs, read from folders or files, and sorted: by task, then by method and the settings that were varied."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alora_trainer.basics.scores import TaskScore
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods import METHODS
from alora_trainer.experiment.report.method_result import SCALE, MethodResult
from alora_trainer.experiment.report.results import RESULTS_FILE, RunResults, read_results

logger = logging.getLogger(__name__)

BASE, PLAIN, OURS = "base", "lora", "alora"
_LEVELS = ("", "*/", "*/*/")  # a run, a sweep, a sweep of several recipes


@dataclass
class MethodVariant:
    """A method with one set of settings, over seeds.

    Attributes:
        method: its name.
        settings: those of its settings that differ between its variants.
        entries: seed -> its result.
    """

    method: str
    settings: dict[str, Any]
    entries: dict[int, MethodResult] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """For people: the method, and what was varied."""
        return f"{self.method} ({self.varied})" if self.settings else self.method

    @property
    def varied(self) -> str:
        """The varied settings alone, such as ``lam=0.1, r=8``."""
        return ", ".join(f"{key.rpartition('.')[2]}={_short(value)}" for key, value in self.settings.items())

    @property
    def lam(self) -> float | None:
        """The strength lambda, if that was varied and is a number."""
        value = self.settings.get("protecting.lam")
        return float(value) if isinstance(value, (int, float)) else None

    @property
    def is_whole(self) -> bool:
        """Whether it is what the training left, and not that times a number."""
        return self.settings.get(SCALE, 1.0) == 1.0

    def values(self, measure: Callable[[MethodResult], float | None]) -> dict[int, float]:
        """A number of the results by seed, where it was measured and is finite.

        Args:
            measure: the number in a result, None where it is not there.
        """
        found = {seed: measure(result) for seed, result in self.entries.items()}
        return {seed: float(value) for seed, value in found.items() if value is not None and math.isfinite(value)}

    def task_values(self, task: str, measure: Callable[[TaskScore], float | None]) -> dict[int, float]:
        """The same of a task's score."""
        return self.values(lambda result: measure(result.tasks.get(task, TaskScore())))

    @property
    def perplexities(self) -> dict[int, float]:
        """Token perplexity on the general text, by seed."""
        return self.values(lambda result: result.general.token_perplexity)


@dataclass(eq=False)
class Comparison:
    """All that was run on one task with one model.

    Attributes:
        task: the task's name.
        model: the base model, as the recipe writes it.
        variants: in the order of the methods, then of the settings.
        runs: what was read, for recipe, environment and overlap.
    """

    task: str
    model: str
    variants: list[MethodVariant]
    runs: list[RunResults]

    @property
    def methods(self) -> list[str]:
        """Every method once, in the variants' order."""
        return list(dict.fromkeys(variant.method for variant in self.variants))

    @property
    def seeds(self) -> list[int]:
        """All seeds that anything was run with."""
        return sorted({seed for variant in self.variants for seed in variant.entries})

    def of(self, method: str) -> list[MethodVariant]:
        """The variants of a method."""
        return [variant for variant in self.variants if variant.method == method]

    def rises(self, variant: MethodVariant) -> dict[int, float]:
        """By how much, in per cent, general token perplexity lies over the base model's, by seed."""
        base = next(iter(self.of(BASE)), None)
        if base is None:
            return {}
        before = base.perplexities
        if not before:
            return {}
        # The base model is the same whatever the seed.
        default = next(iter(before.values()))
        after = variant.perplexities
        return {seed: 100 * (value / before.get(seed, default) - 1) for seed, value in after.items()}

    def loss_rises(self, variant: MethodVariant) -> dict[int, float]:
        """By how much, in per cent, general loss (nats a token) lies over the base model's, by seed: what a budget is of."""
        base = next(iter(self.of(BASE)), None)
        before = base.values(lambda one: one.general.loss) if base is not None else {}
        if not before:
            return {}
        default = next(iter(before.values()))
        after = variant.values(lambda one: one.general.loss)
        starts = {seed: before.get(seed, default) for seed in after}
        return {seed: 100 * (value / starts[seed] - 1) for seed, value in after.items() if starts[seed] > 0}

    @property
    def is_free(self) -> bool:
        """Whether the task's answers are free text, so that it is their loss that says what was learned."""
        return any(self.answer_losses(variant) for variant in self.variants)

    def answer_losses(self, variant: MethodVariant) -> dict[int, float]:
        """A variant's loss of free answers, in nats a token, by seed; none for a task with choices."""
        return variant.task_values(self.task, lambda score: score.answer_loss)

    def accuracies(self, variant: MethodVariant) -> dict[int, float]:
        """A variant's accuracy in the task, in per cent, by seed; none for free answers, which are hardly ever met whole."""
        found = variant.task_values(self.task, lambda score: None if score.is_free else score.acc)
        return {seed: 100 * value for seed, value in found.items()}


def read_runs(sources: Iterable[str | Path]) -> list[RunResults]:
    """The results of all runs that the sources hold.

    Args:
        sources: run folders, folders of them (a sweep's), files like results.json, or the JSON file of a report.

    Raises:
        ALoRAError: a source has no results, or is of another schema or damaged.
    """
    runs = []
    for source in map(Path, sources):
        levels = ([source],) if source.is_file() else (sorted(source.glob(f"{up}{RESULTS_FILE}")) for up in _LEVELS)
        files = next((found for found in levels if found), [])
        if not files:
            raise ALoRAError(
                f"{source} has no {RESULTS_FILE}, nor has a folder in it: name the folder of a finished run"
            )
        for file in files:
            found = read_results(file)
            for run in found:
                _tell_what_is_missing(run, file)
            runs += found
    if sum(len(run.methods) for run in runs) == 1:
        logger.warning("there is one method in all: a report of it compares nothing")
    return runs


def _tell_what_is_missing(run: RunResults, file: Path) -> None:
    """Warn of methods that the recipe names and the results lack: a run that was stopped looks like a small one."""
    named = run.recipe.get("methods") or []
    named = [word.strip() for word in named.split(",")] if isinstance(named, str) else map(str, named)
    there = {name.partition("@")[0] for name in run.methods}
    missing = [name for name in named if name not in there]
    if missing:
        logger.warning(f"{file} has no results of {', '.join(missing)}, which its recipe names: run it to its end")


def by_task(runs: Sequence[RunResults]) -> list[Comparison]:
    """The runs by task and model, each with its methods' variants.

    A method with the same settings and seed in two runs (the base model, say) counts once.

    Raises:
        ALoRAError: there is no run, or none with a task.
    """
    groups: dict[tuple[str, str], list[RunResults]] = {}
    for run in runs:
        for task in dict.fromkeys(task for result in run.methods.values() for task in result.tasks):
            groups.setdefault((task, str(run.recipe.get("model", {}).get("path"))), []).append(run)
    if not groups:
        raise ALoRAError("there is no run with a task to report on")
    return [Comparison(task, model, _variants(group, task), group) for (task, model), group in groups.items()]


def _variants(runs: Sequence[RunResults], task: str) -> list[MethodVariant]:
    found: list[tuple[str, dict[str, Any], int, MethodResult]] = []
    for run in runs:
        for name, result in run.methods.items():
            if task in result.tasks:
                method = name.partition("@")[0]
                found.append((method, _settings(method, result, run), run.seed, result))
    varied = {method: _varied([one for name, one, _, _ in found if name == method]) for method, *_ in found}
    variants: dict[tuple[str, str], MethodVariant] = {}
    for method, settings, seed, result in found:
        own = {key: settings.get(key) for key in varied[method]}
        variant = variants.setdefault((method, json.dumps(own, sort_keys=True)), MethodVariant(method, own))
        variant.entries.setdefault(seed, result)
    known = list(METHODS)
    order = {method: known.index(method) if method in known else len(known) for method in varied}
    return sorted(variants.values(), key=lambda one: (order[one.method], one.method, _sorting(one.settings)))


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _settings(method: str, result: MethodResult, run: RunResults) -> dict[str, Any]:
    if result.settings is not None:
        # The finished adapter itself, where nothing says that it was multiplied by a number.
        return {SCALE: 1.0} | dict(result.settings)
    # Written before entries had settings, when `alora` was the only method that the recipe's `alora` mattered to.
    section = run.recipe.get("alora", {}) if method == OURS else {}
    return {f"protecting.{key}": value for key, value in section.items() if key != "record"}


def _varied(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for one in settings for key in one)
    return [key for key in keys if len({json.dumps(one.get(key), sort_keys=True) for one in settings}) > 1]


def _sorting(settings: Mapping[str, Any]) -> list[tuple[int, float, str]]:
    """Numbers by size, before words."""
    return [
        (0, float(value), "") if isinstance(value, (int, float)) else (1, 0.0, str(value))
        for value in settings.values()
    ]


def figure_name(comparison: Mapping[str, Any], name: str) -> str:
    """The name of a figure's files, without ending."""
    return f"{comparison['id']}-{name}"
