"""Finished runs, read from folders or files, and sorted: by task, then by method and the settings that were varied."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods import METHODS
from alora_trainer.experiment.report.results import SCHEMA

RESULTS = "results.json"
BASE, PLAIN, OURS = "base", "lora", "alora"


@dataclass
class Variant:
    """A method with one set of settings, over seeds.

    Attributes:
        method: its name.
        settings: those of its settings that differ between its variants.
        entries: seed -> its entry of results.json.
    """

    method: str
    settings: dict[str, Any]
    entries: dict[int, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """For people: the method, and what was varied."""
        return f"{self.method} ({self.varied})" if self.settings else self.method

    @property
    def varied(self) -> str:
        return ", ".join(f"{key.rpartition('.')[2]}={_short(value)}" for key, value in self.settings.items())

    @property
    def lam(self) -> float | None:
        """The strength lambda, if that was varied and is a number."""
        value = self.settings.get("protecting.lam")
        return float(value) if isinstance(value, (int, float)) else None

    def values(self, *path: str) -> dict[int, float]:
        """A number of the entries by seed, where it is there: ``values("tasks", "sciq", "acc")``."""
        found = {}
        for seed, entry in self.entries.items():
            value: Any = entry
            for key in path:
                value = value.get(key) if isinstance(value, Mapping) else None
            if isinstance(value, (int, float)):
                found[seed] = float(value)
        return found


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
    variants: list[Variant]
    runs: list[Mapping[str, Any]]

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(variant.method for variant in self.variants))

    @property
    def seeds(self) -> list[int]:
        return sorted({seed for variant in self.variants for seed in variant.entries})

    def of(self, method: str) -> list[Variant]:
        """The variants of a method."""
        return [variant for variant in self.variants if variant.method == method]

    def rises(self, variant: Variant) -> dict[int, float]:
        """By how much, in per cent, general token perplexity lies over the base model's, by seed."""
        base = next(iter(self.of(BASE)), None)
        if base is None:
            return {}
        before = base.values("general", "token_perplexity")
        if not before:
            return {}
        # The base model is the same whatever the seed.
        default = next(iter(before.values()))
        after = variant.values("general", "token_perplexity")
        return {seed: 100 * (value / before.get(seed, default) - 1) for seed, value in after.items()}


def read_runs(sources: Iterable[str | Path]) -> list[dict[str, Any]]:
    """The results of all runs that the sources hold.

    Args:
        sources: run folders, folders of them (a sweep's), files like results.json, or the JSON file of a report.

    Raises:
        ALoRAError: a source has no results, or is of another schema or damaged.
    """
    runs = []
    for source in map(Path, sources):
        files = [source] if source.is_file() else sorted(source.glob(RESULTS)) or sorted(source.glob(f"*/{RESULTS}"))
        files = files or sorted(source.glob(f"*/*/{RESULTS}"))
        if not files:
            raise ALoRAError(f"{source} has no {RESULTS}, nor has a folder in it: name the folder of a finished run")
        for file in files:
            runs += _read(file)
    return runs


def _read(file: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ALoRAError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ALoRAError(f"{file} holds no results: name results.json of a run, or report.json of a report")
    runs = content.get("runs", [content])
    for run in runs:
        if not isinstance(run, dict) or not isinstance(run.get("methods"), dict):
            raise ALoRAError(f"{file} holds no results: name results.json of a run, or report.json of a report")
        if run.get("schema") != SCHEMA:
            raise ALoRAError(f"{file} has schema {run.get('schema')!r}, and this version reads {SCHEMA}")
    return list(runs)


def compare(runs: Sequence[Mapping[str, Any]]) -> list[Comparison]:
    """The runs by task and model, each with its methods' variants.

    A method with the same settings and seed in two runs (the base model, say) counts once.

    Raises:
        ALoRAError: there is no run, or none with a task.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in runs:
        tasks = dict.fromkeys(task for entry in run["methods"].values() for task in entry.get("tasks", {}))
        for task in tasks:
            groups.setdefault((task, str(run["recipe"].get("model", {}).get("path"))), []).append(run)
    if not groups:
        raise ALoRAError("there is no run with a task to report on")
    return [Comparison(task, model, _variants(group, task), group) for (task, model), group in groups.items()]


def _variants(runs: Sequence[Mapping[str, Any]], task: str) -> list[Variant]:
    found: list[tuple[str, dict[str, Any], int, Mapping[str, Any]]] = []
    for run in runs:
        for name, entry in run["methods"].items():
            if task in entry.get("tasks", {}):
                method = name.partition("@")[0]
                found.append((method, _settings(method, entry, run), int(run["recipe"].get("seed", 0)), entry))
    varied = {method: _varied([one for name, one, _, _ in found if name == method]) for method, *_ in found}
    variants: dict[tuple[str, str], Variant] = {}
    for method, settings, seed, entry in found:
        own = {key: settings.get(key) for key in varied[method]}
        variant = variants.setdefault((method, json.dumps(own, sort_keys=True)), Variant(method, own))
        variant.entries.setdefault(seed, entry)
    known = list(METHODS)
    order = {method: known.index(method) if method in known else len(known) for method in varied}
    return sorted(variants.values(), key=lambda one: (order[one.method], one.method, _sorting(one.settings)))


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _settings(method: str, entry: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    if "settings" in entry:
        return dict(entry["settings"])
    # Written before entries had settings, when `alora` was the only method that the recipe's `alora` mattered to.
    section = run["recipe"].get("alora", {}) if method == OURS else {}
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
