"""results.json and table.md: what a run found, and with what."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alora_trainer.parts import write_json, write_text

if TYPE_CHECKING:
    from alora_trainer.recipe import Recipe

SCHEMA = 1
_PACKAGES = ("torch", "transformers", "peft", "lm_eval", "datasets", "alora_trainer")


def environment() -> dict[str, Any]:
    """Versions, platform, threads and device: what a number may depend on beside the recipe."""
    import torch

    return {
        "python": platform.python_version(),
        **{package: _version(package) for package in _PACKAGES},
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def _version(package: str) -> str:
    if package == "alora_trainer":
        from alora_trainer import __version__

        return __version__
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def write_results(folder: Path, recipe: Recipe, methods: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Write ``results.json`` and ``table.md`` into `folder`, each whole or not at all.

    The recipe is stored as it was written, overrides included, so that no path of this machine gets into the results.

    Returns:
        What results.json holds.
    """
    from alora_trainer.evaluation.table import format_table

    results = {
        "schema": SCHEMA,
        "recipe": recipe.written,
        "environment": environment(),
        "methods": {name: dict(entry) for name, entry in methods.items()},
    }
    write_json(folder / "results.json", results)
    write_text(folder / "table.md", format_table(methods) + "\n")
    return results
