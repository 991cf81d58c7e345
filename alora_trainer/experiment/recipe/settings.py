"""From text to typed settings: YAML as people mean it, variables, overrides, and errors that name the right key."""

from __future__ import annotations

import math
import os
import re
import types
import typing
from collections.abc import Collection, Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from alora_trainer.basics.disclosure import FromEnvironment, is_secret_name, note
from alora_trainer.errors import ALoRAError

# What is from the environment is written as it was written.
yaml.SafeDumper.add_representer(
    FromEnvironment, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text.written)
)

_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")
_REFERENCE = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*(:-)?\}")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")  # of the Hub
_OF_FREE_NAMES = ("general", "domain", "domains")  # sections whose keys may be names of texts
_WORD_LIST = re.compile(r"[\w.-]+(\s*,\s*[\w.-]+)*")


# Of one document: how deep it may be nested, and how many values it may have, each alias counted as what it stands for.
_DEEPEST, _MOST = 50, 100_000


class _Loader(yaml.SafeLoader):
    """YAML 1.2's idea of numbers and booleans: 1e-4 is a number and ``no`` is a word. A repeated key is an error.

    What would grow beyond all bounds when it is read (aliases of aliases, or of themselves) is an error, too.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._depth = self._values = 0
        self._sizes: dict[int, int] = {}  # of the nodes that are whole, aliases in them counted

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()
        before, self._depth = self._values, self._depth + 1
        if self._depth > _DEEPEST:
            raise _refused(f"it is nested more than {_DEEPEST} deep", event)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        if not isinstance(event, yaml.AliasEvent):
            self._values += 1
            self._sizes[id(node)] = self._values - before
        elif id(node) in self._sizes:
            self._values += self._sizes[id(node)]
        else:
            raise _refused(f"*{event.anchor} stands for something that it is itself in", event)
        if self._values > _MOST:
            raise _refused(f"it has more than {_MOST:,} values, counting what aliases stand for", event)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for position, key in enumerate(keys):
            if any(key.value == earlier.value for earlier in keys[:position]):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is there twice", key.start_mark
                )
        return super().construct_mapping(node, deep)


def _refused(problem: str, event: Any) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, event.start_mark)


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
    """The value that `text` says; `origin` names it in the error if it is no YAML, or is none that can be read safely."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        raise ALoRAError(f"{origin} is not valid YAML{where}: {reason}") from error
    except (ValueError, AttributeError, TypeError, OverflowError) as error:
        # A value that is not of its own tag, such as !!int x; PyYAML's constructors do not look.
        raise ALoRAError(f"{origin} is not valid YAML: a value is not what its tag says ({error})") from error


def interpolate(
    value: Any, variables: Mapping[str, str], where: str = "the recipe", *, known: Collection[str] = ()
) -> Any:
    """`value` with ``${NAME}`` and ``${NAME:-default}`` replaced in all of its strings.

    Args:
        variables: by name.
        where: for messages.
        known: those of `variables` that are not from the environment: their values may be written.

    Raises:
        ALoRAError: a variable has neither a value nor a default.
    """
    if isinstance(value, Mapping):
        return {key: interpolate(item, variables, f"{where}, {key}", known=known) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolate(item, variables, where, known=known) for item in value]
    if not isinstance(value, str):
        return value
    foreign: dict[str, str] = {}

    def replacement(match: re.Match[str]) -> str:
        name = match["name"]
        found = variables.get(name)
        # An empty variable counts as unset with ":-", as in a shell.
        if match["default"] is not None and not found:
            return match["default"]
        if found is None:
            raise ALoRAError(f"{where} uses ${{{name}}}, which is not set: export {name}=... first")
        if name not in known:
            foreign[name] = found
        return found

    said = _VARIABLE.sub(replacement, value)
    if not foreign:
        return said
    secret = is_secret_name(where.rpartition(", ")[2]) or any(map(is_secret_name, foreign))
    for name, found in foreign.items():
        note(name, found, secret=secret)
    written = _VARIABLE.sub(lambda match: match[0] if match["name"] in foreign else replacement(match), value)
    return FromEnvironment(said, written, secret)


def check_no_secrets(value: Any, where: str) -> None:
    """Refuse a secret that is written down, without repeating it.

    Args:
        value: a recipe or a part of it, before variables are replaced.
        where: its dotted name; empty for the whole.

    Raises:
        ALoRAError: a field of a secret's name has a text that is no ``${NAME}``; a text has a token of the Hub in it.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            check_no_secrets(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, (list, tuple)):
        for item in value:
            check_no_secrets(item, where)
    elif isinstance(value, str):
        names_a_file = where.partition(".")[0] in _OF_FREE_NAMES
        is_secret = is_secret_name(where) and not names_a_file and value and not _REFERENCE.fullmatch(value)
        if is_secret or _TOKEN.search(value):
            raise ALoRAError(
                f"{where} holds a secret, which would be written wherever the recipe is: leave it out (the Hub takes HF_TOKEN "
                "from the environment, or `hf auth login`), or write ${NAME} for a variable that has it"
            )


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


def set_override(settings: dict[str, Any], key: str, value: Any) -> None:
    """Put a setting of a dotted name into `settings`, over what they say.

    Args:
        value: a text, read as YAML, as the command line's ``--section.key TEXT``; or a plain value as it is.

    Raises:
        ALoRAError: the text is no YAML, or the value is nothing that YAML has; a part of the path is there already and has no
            keys.
    """
    check_no_secrets(value, key)
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
    target[last] = parse_yaml(value, f"--{key} {value}") if isinstance(value, str) else _plain(value, key)


def _plain(value: Any, key: str) -> Any:
    """A copy of a value that Python gave, as YAML would have given it."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(one, key) for one in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(one, f"{key}.{name}") for name, one in value.items()}
    raise ALoRAError(
        f"{key}={value!r} cannot be written in a recipe: give a number, true or false, a text, or a list or mapping of them"
    )


def coerce_all(values: Mapping[str, Any], hints: Mapping[str, Any], section: str) -> dict[str, Any]:
    """`values` brought to the types that `hints` has for them (after `check_keys`)."""
    return {key: coerce(value, hints.get(key, Any), f"{section}.{key}") for key, value in values.items()}


def coerce(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type that a field asks for: a number written as text or as 1e3, one word for a list, and so on.

    Only numbers, booleans, words and lists of words or numbers are looked at; all else passes unchanged.

    Raises:
        ALoRAError: a number or a boolean is asked for, and the value is none.
    """
    if hint == list[float]:
        listed = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
        return [_number(one, whole=False, where=where) for one in listed]
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
    if str in simple and isinstance(value, str):  # from the environment
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


def absolute_path(text: str, base: Path) -> str:
    """The same as a text that says it from anywhere; what comes from the environment stays known as such."""
    path = str(resolve_path(text, base))
    if not isinstance(text, FromEnvironment):
        return path
    anchored = Path(text).expanduser().is_absolute()
    return text.with_value(path, text.written if anchored else str(base / text.written))
