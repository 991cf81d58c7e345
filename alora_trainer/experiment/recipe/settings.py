"""From text to typed settings: YAML as people mean it, variables, overrides, and errors that name the right key."""

from __future__ import annotations

import math
import os
import re
import types
import typing
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from alora_trainer.errors import ALoRAError

_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")
_WORD_LIST = re.compile(r"[\w.-]+(\s*,\s*[\w.-]+)*")


class _Loader(yaml.SafeLoader):
    """YAML 1.2's idea of numbers and booleans: 1e-4 is a number and ``no`` is a word. A repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for position, key in enumerate(keys):
            if any(key.value == earlier.value for earlier in keys[:position]):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is there twice", key.start_mark
                )
        return super().construct_mapping(node, deep)


_REPLACED = ("tag:yaml.org,2002:float", "tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def parse_yaml(text: str, origin: str) -> Any:
    """The value that `text` says; `origin` names it in the error if it is no YAML."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        raise ALoRAError(f"{origin} is not valid YAML{where}: {reason}") from error


def interpolate(value: Any, variables: Mapping[str, str], where: str = "the recipe") -> Any:
    """`value` with ``${NAME}`` and ``${NAME:-default}`` replaced in all of its strings.

    Raises:
        ALoRAError: a variable has neither a value nor a default.
    """
    if isinstance(value, Mapping):
        return {key: interpolate(item, variables, f"{where}, {key}") for key, item in value.items()}
    if isinstance(value, list):
        return [interpolate(item, variables, where) for item in value]
    if not isinstance(value, str):
        return value

    def replacement(match: re.Match[str]) -> str:
        # An empty variable counts as unset with ":-", as in a shell.
        found = variables.get(match["name"])
        if match["default"] is not None:
            return found or match["default"]
        if found is None:
            raise ALoRAError(f"{where} uses ${{{match['name']}}}, which is not set: export {match['name']}=... first")
        return found

    return _VARIABLE.sub(replacement, value)


def environment_variables(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The process's environment, with `extra` over it."""
    return {**os.environ, **(extra or {})}


def as_mapping(value: Any, where: str) -> dict[str, Any]:
    """`value` as a mapping with names for keys; a section that is left empty is an empty mapping."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ALoRAError(f"{where}={value!r} must be a mapping of names to values")
    return dict(value)


def set_override(settings: dict[str, Any], key: str, text: str) -> None:
    """Put the command line's ``--section.key text`` into `settings`, read as YAML.

    Raises:
        ALoRAError: the text is no YAML, or a part of the path is there already and has no keys.
    """
    *path, last = key.split(".")
    if not all([*path, last]):
        raise ALoRAError(f"--{key} is no name of a setting: write it as --section.key VALUE")
    target = settings
    for depth, part in enumerate(path, start=1):
        if target.get(part) is None:
            target[part] = {}
        if not isinstance(target[part], dict):
            raise ALoRAError(f"--{key}: {'.'.join(path[:depth])} is {target[part]!r}, which has no keys")
        target = target[part]
    target[last] = parse_yaml(text, f"--{key} {text}")


def coerce_all(values: Mapping[str, Any], hints: Mapping[str, Any], section: str) -> dict[str, Any]:
    """`values` brought to the types that `hints` has for them (after `check_keys`)."""
    return {key: coerce(value, hints.get(key, Any), f"{section}.{key}") for key, value in values.items()}


def coerce(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type that a field asks for: a number written as text or as 1e3, one word for a list, and so on.

    Only numbers, booleans, words and lists of words are looked at; all else passes unchanged.

    Raises:
        ALoRAError: a number or a boolean is asked for, and the value is none.
    """
    options = set(_alternatives(hint))
    if value is None or isinstance(value, (dict, list)) and options & {dict, list}:
        if value is None and options and type(None) not in options and options <= {int, float, bool, str}:
            raise ALoRAError(f"{where} has no value: give one, or leave the key out")
        return value
    if (
        list in options
        and isinstance(value, str)
        and _WORD_LIST.fullmatch(value)
        and (str not in options or "," in value)
    ):
        return [word.strip() for word in value.split(",")]
    simple = options & {int, float, bool, str}
    if not simple or options - simple - {type(None)} or any(type(value) is kind for kind in simple):
        return value
    if bool not in simple and simple & {int, float}:
        return _number(value, whole=float not in simple, where=where)
    if simple == {bool}:
        if str(value).lower() in ("true", "false"):
            return str(value).lower() == "true"
        raise ALoRAError(f"{where}={value!r} must be true or false")
    if simple == {str} and isinstance(value, (int, float)):
        return str(value)
    if simple == {str}:
        raise ALoRAError(f"{where}={value!r} must be text")
    return value


def _alternatives(hint: Any) -> list[Any]:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return [kind for argument in typing.get_args(hint) for kind in _alternatives(argument)]
    return [origin or hint]


def _number(value: Any, *, whole: bool, where: str) -> int | float:
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
        if math.isnan(number):
            raise ValueError
        if not whole:
            return number
        if number != int(number):
            raise ValueError
        return int(number)
    except (TypeError, ValueError, OverflowError):
        raise ALoRAError(f"{where}={value!r} must be a {'whole number' if whole else 'number'}") from None


def resolve_path(text: str, base: Path) -> Path:
    """A path as a recipe writes it: relative to the recipe's folder, ``~`` for the home folder."""
    return base / Path(text).expanduser()
