"""Versions of the software that a number may depend on, read from what is installed."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version


def package_version(package: str) -> str | None:
    """The installed version of a package (a distribution's name); None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# "0.0.0": run from a source tree that was never installed.
OWN_VERSION = package_version("alora-trainer") or "0.0.0"


def software_versions(*further: str) -> dict[str, str]:
    """Of Python, this package, and those that a training's outcome depends on.

    Args:
        further: more packages; "unknown" stands for one that is not installed.
    """
    packages = ("torch", "transformers", "peft", *further)
    return {
        "python": platform.python_version(),
        "alora_trainer": OWN_VERSION,
        **{package: package_version(package) or "unknown" for package in packages},
    }
