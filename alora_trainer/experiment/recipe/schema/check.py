"""A recipe held against the schema: every key, every value's type, every name, in tenths of a second.

It finds no fault that reading the recipe in full (`reading.load_recipe`) would not find, and leaves to that what only it can
know: settings that exclude each other, and names that a plugin or another version of a library may have.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Union

from alora_trainer.basics.keys import check_keys, nearest
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.recipe.model_place import model_place
from alora_trainer.experiment.recipe.schema.known import followed, is_open, properties_of, schema, sections_with
from alora_trainer.experiment.recipe.settings import as_mapping, coerce, environment_variables, interpolate
from alora_trainer.experiment.recipe.written import read_written

_PYTHON = {
    "boolean": bool,
    "integer": int,
    "number": float,
    "string": str,
    "array": list,
    "object": dict,
    "null": types.NoneType,
}
# What others call a setting of ours.
_ELSEWHERE = {
    "base_model": "model.path",
    "model_name_or_path": "model.path",
    "dataset": "domain.train",
    "datasets": "domain.train",
    "sequence_len": "domain.max_length",
    "num_epochs": "tune.num_train_epochs",
    "micro_batch_size": "tune.per_device_train_batch_size",
    "lora_r": "lora.r",
    "lora_target_modules": "lora.target_modules",
}


def check_file(
    path: str | Path, overrides: Mapping[str, Any] | None = None, *, variables: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Check a recipe's file, with overrides in it, without importing what runs it.

    Returns:
        The recipe as it was written, variables replaced.

    Raises:
        ALoRAError: as `reading.load_recipe`, for what the schema knows.
    """
    path = Path(path)
    given = interpolate(read_written(path, overrides), environment_variables(variables), known=variables or {})
    check_given(given)
    place = (given.get("model") or {}).get("path")
    if isinstance(place, str):
        model_place(place, path.parent)
    return dict(given)


def check_given(given: Mapping[str, Any]) -> None:
    """Check a recipe as plain data, variables replaced. Raises ALoRAError for the first fault."""
    check_sections(given)
    for key, part in schema()["properties"].items():
        needed = bool(followed(part).get("required")) and not (key == "domain" and "domains" in given)
        if key in given or needed:
            check_value(given.get(key), part, key)


def check_sections(given: Mapping[str, Any]) -> None:
    """Raises ALoRAError for a key of a recipe as plain data that is none of a recipe's; its message says what was meant."""
    for key, value in given.items():
        if key not in schema()["properties"]:
            raise _unknown(key, value)


def check_settings(names: Iterable[str]) -> None:
    """The same for dotted names, as of settings on the command line."""
    for name in names:
        first, _, rest = name.partition(".")
        check_sections({first: {rest: None} if rest else None})


def check_value(value: Any, part: Mapping[str, Any], where: str) -> None:
    """Check one value against its part of the schema.

    Raises:
        ALoRAError: it is not of the type, or of no known name, or one of its keys is unknown or missing.
    """
    part = followed(part)
    if "anyOf" in part:
        _check_any(value, part["anyOf"], where)
        return
    kinds = [part["type"]] if isinstance(part.get("type"), str) else list(part.get("type", ()))
    if "object" in kinds and "properties" in part and set(kinds) <= {"object", "null"}:
        _check_section(as_mapping(value, where), part, where)
        return
    if kinds:
        value = coerce(value, Union[tuple(_PYTHON[kind] for kind in kinds)], where)  # noqa: UP007  (of a list)
    if isinstance(value, list) and "items" in part:
        for item in value:
            check_value(item, part["items"], where)
    elif isinstance(value, dict) and isinstance(part.get("additionalProperties"), Mapping):
        for key, item in value.items():
            check_value(item, part["additionalProperties"], f"{where}.{key}")
    else:
        _check_name(value, part, where)
        _check_pattern(value, part, where)


def _check_section(values: Mapping[str, Any], part: Mapping[str, Any], where: str) -> None:
    for key in part.get("required", ()):
        if values.get(key) is None:
            raise ALoRAError(f"the recipe has no {where}.{key}: add it")
    if not is_open(part):
        check_keys(values, part["properties"], where)
    for key, value in values.items():
        if key in part["properties"]:
            check_value(value, part["properties"][key], f"{where}.{key}")


def _check_any(value: Any, branches: list[Mapping[str, Any]], where: str) -> None:
    """One branch must take the value; the error is that of the branch that was meant, by the value's type and keys."""
    fitting = [one for one in map(followed, branches) if _fits(value, one)]
    if not fitting:
        raise ALoRAError(
            f"{where}={value!r} is not of a form that it can have: see `alora check --list-settings {where}`"
        )
    error: ALoRAError | None = None
    for branch in sorted(fitting, key=lambda one: (-_common(value, one), "properties" in one or "anyOf" in one)):
        try:
            check_value(value, branch, where)
            return
        except ALoRAError as found:
            error = error or found
    assert error is not None  # every branch raised
    raise error


def _fits(value: Any, part: Mapping[str, Any]) -> bool:
    if "anyOf" in part:
        return any(_fits(value, followed(one)) for one in part["anyOf"])
    kinds = [part["type"]] if isinstance(part.get("type"), str) else list(part.get("type", ()))
    if isinstance(value, Mapping) and set(value) & set(part.get("propertyNames", {}).get("not", {}).get("enum", ())):
        return False
    return any(isinstance(value, _PYTHON[kind]) for kind in kinds)


def _common(value: Any, part: Mapping[str, Any]) -> int:
    """How many keys of a value a branch knows."""
    return len(set(value) & set(part.get("properties", ()))) if isinstance(value, Mapping) else 0


def _check_name(value: Any, part: Mapping[str, Any], where: str) -> None:
    names = part.get("enum")
    if names is None or value in names or value in part.get("x-older", ()) or is_open(part):
        return
    near = nearest(value, [name for name in names if isinstance(name, str)])
    meant = f"did you mean {near!r}? " if near else ""
    known = ", ".join("null" if name is None else repr(name) for name in names)
    raise ALoRAError(f"{where}={value!r} is unknown: {meant}use one of {known}")


def _check_pattern(value: Any, part: Mapping[str, Any], where: str) -> None:
    pattern = part.get("pattern")
    if pattern is None or not isinstance(value, str) or re.search(pattern, value):
        return
    as_column = f' (for the column {value}: {where}: "{{{value}}}")' if value.isidentifier() else ""
    raise ALoRAError(f"{where}={value!r} cannot be used: {part['patternErrorMessage']}{as_column}")


def _unknown(key: str, value: Any) -> ALoRAError:
    """What was meant by a key that is none of a recipe's."""
    near = _ELSEWHERE.get(key) or nearest(key, list(schema()["properties"]))
    inner = list(value) if isinstance(value, Mapping) else []
    if near is None:
        sections = sections_with(inner or [key])
        rest = f".{inner[0]}" if len(inner) == 1 and sections else "" if inner else f".{key}"
        near = " or ".join(f"{section}{rest}" for section in sections[:3]) or None
    if near is None and not inner:
        close = {name: nearest(key, list(properties_of(name))) for name in ("alora", "tune", "domain", "lora")}
        near = " or ".join(f"{name}.{found}" for name, found in close.items() if found) or None
    advice = f"did you mean {near}?" if near else f"known are {', '.join(schema()['properties'])}"
    return ALoRAError(f"unknown key {key}{'.' + inner[0] if len(inner) == 1 else ''}: {advice}")
