"""The schema's file, read: what is known of recipes without importing what runs them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from alora_trainer.basics.registry import has_plugins
from alora_trainer.basics.versions import package_version

SCHEMA_FILE = "recipe.schema.json"


def schema_text() -> str:
    """The file, as `alora schema` prints it."""
    return files(__package__).joinpath(SCHEMA_FILE).read_text(encoding="utf-8")


@cache
def schema() -> Mapping[str, Any]:
    """The file's content."""
    found: Mapping[str, Any] = json.loads(schema_text())
    return found


@cache
def definition(name: str) -> Mapping[str, Any]:
    """A part that others refer to, or that is a section of a recipe; its own references are followed once.

    Args:
        name: "domain", "training", "source" and so on.
    """
    found = schema()["definitions"].get(name)
    return followed(found if found is not None else schema()["properties"][name])


def followed(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """A part of the schema, with what it refers to in the place of the reference; its own keywords count before that."""
    reference = part.get("$ref") or next((one["$ref"] for one in part.get("allOf", ()) if "$ref" in one), None)
    if reference is None:
        return part
    own = {key: value for key, value in part.items() if key not in ("$ref", "allOf")}
    return {**followed(schema()["definitions"][reference.rpartition("/")[2]]), **own}


def is_open(part: Mapping[str, Any]) -> bool:
    """Whether there may be more names than the part has: a plugin's, or those of another version of a library."""
    library = part.get("x-of")
    if library is not None:
        return package_version(library) != schema()["x-made-with"][library]
    return bool(part.get("x-registered")) and has_plugins()


def sections_with(keys: list[str]) -> list[str]:
    """The sections of a recipe that have the most of these keys; none where no section has any."""
    counts = {
        name: sum(key in properties_of(name) for key in keys)
        for name in schema()["properties"]
        if name not in ("method_options", "fresh_lora")
    }
    most = max(counts.values())
    return [name for name, count in counts.items() if count == most and most > 0]


def properties_of(section: str) -> Mapping[str, Any]:
    """A section's keys with what is known of each; nothing for what is no section."""
    found: Mapping[str, Any] = followed(schema()["properties"].get(section, {})).get("properties", {})
    return found
