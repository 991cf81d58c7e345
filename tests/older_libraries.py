"""What the lowest versions of libraries that we declare cannot do, and `constraints.txt`'s can: its tests say so and skip."""

from __future__ import annotations

from dataclasses import fields
from importlib.metadata import version

import pytest
from packaging.version import Version
from transformers import TrainingArguments


def before(package: str, first: str) -> bool:
    """Whether the installed version of a package is older than `first`."""
    return Version(Version(version(package)).base_version) < Version(first)


def skip_before(package: str, first: str, why: str) -> None:
    """Skip what asks, a test or a fixture, with an older version of a package."""
    if before(package, first):
        pytest.skip(f"needs {package} {first}: {why}")


def goes_on_in_several_cpu_processes() -> None:
    """Skip where transformers asks for an optimizer's state on "cpu:0", which PyTorch does not know."""
    skip_before("transformers", "5.20", "an earlier one cannot go on from a checkpoint in several processes on a CPU")


def checkpointing(on: bool, **settings: object) -> dict[str, object]:
    """The arguments that turn activation checkpointing on, by the names that this transformers has for them."""
    known = {field.name for field in fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    return {name: on, f"{name}_kwargs": settings}
