"""results.json and table.md: what a run found, and with what. They are written and read here alone."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from alora_trainer.artefact.cards.evaluation import CardScores
from alora_trainer.basics.disclosure import as_settings, without_secrets
from alora_trainer.basics.files import write_json, write_text
from alora_trainer.basics.json_record import JSONRecord
from alora_trainer.basics.processes import place
from alora_trainer.basics.versions import software_versions
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.report.definitions import definitions
from alora_trainer.experiment.report.method_result import SCALE, MethodResult
from alora_trainer.experiment.report.text_table import format_table

RESULTS_FILE = "results.json"
SCHEMA = 1


@dataclass(frozen=True)
class RunResults(JSONRecord):
    """What results.json holds.

    Attributes:
        recipe: as it was written, overrides included.
        methods: what was found, by method (``METHOD@VARIANT`` in a sweep).
        environment: see `environment`.
        definitions: metric -> what it is; None in results that are older than this.
        overlap: of the recording text with the test items (see `data.overlap`); None where it was not compared.
        schema: of the file.
    """

    recipe: Mapping[str, Any]
    methods: Mapping[str, MethodResult]
    environment: Mapping[str, Any] = field(default_factory=dict)
    definitions: Mapping[str, str] | None = None
    overlap: Mapping[str, Any] | None = None
    schema: int = SCHEMA

    def to_json(self) -> dict[str, Any]:
        """The file's content, the methods last."""
        content = super().to_json()
        methods = content.pop("methods")
        if self.definitions is not None:
            content.setdefault("overlap", None)  # it was looked for since there are definitions
        order = ("schema", "recipe", "environment", "definitions", "overlap")
        head = {key: content.pop(key) for key in order if key in content}
        return head | {"methods": methods} | content

    @property
    def seed(self) -> int:
        """Of the recipe."""
        return int(self.recipe.get("seed", 0))


def environment() -> dict[str, Any]:
    """Versions, platform, threads, processes and device: what a number may depend on beside the recipe."""
    return {
        **software_versions("lm_eval", "datasets"),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "processes": place()[1],
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def method_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a method's training depends on, by dotted name, without those that name files of this machine.

    Args:
        settings: of the training's part (see `Run`).
    """
    settings = as_settings(settings)
    recording = settings.get("recording")
    kept = {key: settings[key] for key in ("tune", "lora", "protecting", "options") if key in settings}
    if isinstance(recording, Mapping):
        kept |= {f"recording.{key}": recording[key] for key in ("record", "lora", "alora") if key in recording}
    scaled = {SCALE: settings[SCALE]} if SCALE in settings else {}
    return scaled | {
        f"{section}.{key}": value
        for section, values in kept.items()
        for key, value in values.items()
        if value is not None
    }


def write_results(
    folder: Path,
    recipe: Recipe,
    methods: Mapping[str, MethodResult],
    overlap: Mapping[str, Any] | None = None,
) -> RunResults:
    """Write ``results.json`` and ``table.md`` into `folder`, each whole or not at all.

    The recipe is stored as it was written, overrides included, so that no path of this machine gets into the results.

    Args:
        folder: the run's.
        recipe: that was run.
        methods: what was found, by method.
        overlap: of the recording text with the test items (see `data.overlap`); None where it was not compared.

    Returns:
        What results.json holds.
    """
    results = results_of(recipe, methods, overlap)
    write_json(folder / RESULTS_FILE, results.to_json())
    write_text(folder / "table.md", format_table(methods) + "\n")
    return results


def results_of(
    recipe: Recipe, methods: Mapping[str, MethodResult], overlap: Mapping[str, Any] | None = None
) -> RunResults:
    """What `write_results` writes, without writing it."""
    return RunResults(recipe.written, dict(methods), environment(), definitions(recipe), overlap)


def read_results(file: Path) -> list[RunResults]:
    """The runs that a file holds: one in ``results.json`` of a run, several in ``report.json`` of a report.

    Raises:
        ALoRAError: it cannot be read, holds no results, is of another schema, or is damaged.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ALoRAError(f"{file} cannot be read as JSON: {error}") from error
    runs = content.get("runs", [content]) if isinstance(content, dict) else None
    if not isinstance(runs, list) or not all(isinstance(run, dict) and "methods" in run for run in runs):
        raise ALoRAError(f"{file} holds no results: name results.json of a run, or report.json of a report")
    for run in runs:
        if run.get("schema") != SCHEMA:
            raise ALoRAError(f"{file} has schema {run.get('schema')!r}, and this version reads {SCHEMA}")
    return [RunResults.from_json(without_secrets(run), str(file)) for run in runs]


def card_scores(file: Path, method: str) -> CardScores:
    """One method's score of a results.json, with the base model's beside it where there is one, for a model card.

    Raises:
        ALoRAError: there is no such file or entry, or it is damaged.
    """
    if not file.is_file():
        raise ALoRAError(f"there is no file {file}: give the results.json of `alora run` or `alora eval`")
    methods = {name: result for run in read_results(file) for name, result in run.methods.items()}
    if method not in methods:
        raise ALoRAError(f"{file} has no results of {method!r}: it has those of {', '.join(methods) or 'none'}")
    return CardScores(methods[method], methods.get("base"))
