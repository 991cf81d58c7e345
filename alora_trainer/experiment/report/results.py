"""results.json and table.md: what a run found, and with what."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alora_trainer.basics.files import write_json, write_text
from alora_trainer.basics.versions import software_versions

if TYPE_CHECKING:
    from alora_trainer.experiment.recipe.recipe import Recipe

SCHEMA = 1


def environment() -> dict[str, Any]:
    """Versions, platform, threads, processes and device: what a number may depend on beside the recipe."""
    import torch

    from alora_trainer.basics.processes import place

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
    recording = settings.get("recording")
    kept = {key: settings[key] for key in ("tune", "lora", "protecting") if key in settings}
    if isinstance(recording, Mapping):
        kept |= {f"recording.{key}": recording[key] for key in ("record", "lora", "alora") if key in recording}
    return {
        f"{section}.{key}": value
        for section, values in kept.items()
        for key, value in values.items()
        if value is not None
    }


def write_results(
    folder: Path,
    recipe: Recipe,
    methods: Mapping[str, Mapping[str, Any]],
    overlap: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
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
    from alora_trainer.experiment.report.text_table import format_table

    results = results_of(recipe, methods, overlap)
    write_json(folder / "results.json", results)
    write_text(folder / "table.md", format_table(methods) + "\n")
    return results


def results_of(
    recipe: Recipe, methods: Mapping[str, Mapping[str, Any]], overlap: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What `write_results` writes, without writing it."""
    from alora_trainer.experiment.report.definitions import definitions

    return {
        "schema": SCHEMA,
        "recipe": recipe.written,
        "environment": environment(),
        "definitions": definitions(recipe),
        "overlap": overlap,
        "methods": {name: dict(entry) for name, entry in methods.items()},
    }
