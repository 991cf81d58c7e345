"""Methods and settings as people read them: in the terminal, and as the page docs/recipe_settings.md."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alora_trainer.basics.tables import terminal_width
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.recipe.schema.known import definition, followed, properties_of, schema

_WIDTH = 100  # of a line, where the terminal is as wide
# Sections whose fields another library describes.
_LIBRARY = {
    "lora": "`peft.LoraConfig`",
    "fresh_lora": "`peft.LoraConfig`",
    "record": "`transformers.TrainingArguments`",
    "tune": "`transformers.TrainingArguments`",
}
# Described once, under the first name.
_SAME = {"fresh_lora": "lora", "tune": "record"}


def method_names() -> Mapping[str, str]:
    """Method -> what it is, of the package's own."""
    found: Mapping[str, str] = schema()["properties"]["methods"]["items"]["x-names"]
    return found


def methods_text(methods: Mapping[str, str] | None = None) -> str:
    """One line a method, for the terminal.

    Args:
        methods: by name; None is the package's own.
    """
    return _columns(methods if methods is not None else method_names())


def settings_text(where: str | None = None) -> str:
    """The sections of a recipe, or the settings of one, for the terminal.

    Args:
        where: a section, such as "domain" or "method_options.replay", or a setting in one; None lists the sections.

    Raises:
        ALoRAError: there is none of that name.
    """
    if where is None:
        return _columns({key: part["description"] for key, part in schema()["properties"].items()}) + (
            "\n\nThe settings of a section: --list-settings SECTION"
        )
    part: Mapping[str, Any] = schema()
    for name in where.split("."):
        part = followed(part)
        if name not in part.get("properties", {}):
            known = ", ".join(part.get("properties", {})) or "none"
            raise ALoRAError(f"there is no setting {where}: known are {known}")
        part = part["properties"][name]
    properties = followed(part).get("properties")
    if properties is None:
        return "\n".join(textwrap.wrap(_described(where, followed(part)), _width()))
    return "\n".join(
        textwrap.fill(_described(name, followed(one)), _width(), subsequent_indent="    ")
        for name, one in properties.items()
        if not one.get("deprecated")
    )


def settings_page() -> str:
    """docs/recipe_settings.md."""
    return "\n".join(_page_lines()) + "\n"


def _page_lines() -> Iterator[str]:
    yield "# Every setting of a recipe"
    yield ""
    yield (
        "Made from the dataclasses that check a recipe, by `alora schema --page` (a test holds it to them). The same in the "
        "terminal: `alora check --list-settings` and `alora check --list-settings SECTION`. As a JSON Schema, which editors "
        "complete and check by: `alora schema`; the first line of every recipe in `recipes/` names it. [data.md](data.md) "
        "says what sources and tasks can be."
    )
    yield ""
    yield "Every setting can be overridden on the command line by its dotted name: `--tune.learning_rate 1e-4`."
    for key, part in schema()["properties"].items():
        yield from ("", f"## `{key}`", "", part["description"])
        properties = properties_of(key)
        if key in _SAME:
            yield from ("", f"The same keys as in [`{_SAME[key]}`](#{_SAME[key]}).")
        elif key == "methods":
            yield from ("", *_table(("method", "what it is"), [(f"`{k}`", v) for k, v in method_names().items()]))
        elif key == "method_options":
            yield from _options_lines(properties)
        elif properties:
            if key in _LIBRARY:
                yield from ("", f"The fields of {_LIBRARY[key]}, in the words of {_of(key)}.")
            yield from ("", *_table(("key", "takes", "left out", "what it is"), list(_rows(properties))))
        elif _takes(followed(part)):
            yield from ("", f"Takes {_takes(followed(part))}.")
    yield from ("", "## A task of one's own", "", "As `domain.task`; see [data.md](data.md).")
    for branch in definition("task")["anyOf"][1:]:
        yield from ("", *_table(("key", "takes", "left out", "what it is"), list(_rows(branch["properties"]))))
    yield from ("", "## A source", "", "A path, `hub:organisation/name`, or a mapping with")
    source = definition("source")["anyOf"][1]["properties"]
    yield from ("", *_table(("key", "takes", "left out", "what it is"), list(_rows(source))))


def _of(key: str) -> str:
    library = definition("lora" if key == "lora" else "training")["x-of"]
    return f"{library} {schema()['x-made-with'][library]}"


def _options_lines(properties: Mapping[str, Any]) -> Iterator[str]:
    shared = ("lora", "tune", "alora", "record")
    yield from (
        "",
        "For each method `lora`, `tune` and `alora` (and `record`, for those that record alone), over the sections",
    )
    yield "of these names; and what a method alone has:"
    rows = [
        (f"`{method}.{key}`", *row[1:])
        for method, part in properties.items()
        for key, one in part["properties"].items()
        if key not in shared
        for row in _rows({key: one})
    ]
    yield from ("", *_table(("key", "takes", "left out", "what it is"), rows))


def _rows(properties: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    for name, part in properties.items():
        found = followed(part)
        if not found.get("deprecated"):
            default = f"`{_plain(found['default'])}`" if "default" in found else ""
            yield f"`{name}`", _takes(found), default, found.get("description", "")


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(_cell(cell) for cell in row) + " |"


def _cell(text: str) -> str:
    """Text that breaks no table, and is taken for no HTML outside of code."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()).replace("|", "\\|"))
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts)


def _described(name: str, part: Mapping[str, Any]) -> str:
    default = f", default {_plain(part['default'])}" if "default" in part else ""
    takes = _takes(part, quote="")
    about = f" ({takes}{default})" if takes else f" ({default[2:]})" if default else ""
    return f"{name}{about}: {part.get('description', '')}".rstrip(": ")


def _takes(part: Mapping[str, Any], quote: str = "`") -> str:
    """What values a setting takes, in words."""
    if "enum" in part:
        return ", ".join(f"{quote}{_plain(name)}{quote}" for name in part["enum"])
    kinds = [part["type"]] if isinstance(part.get("type"), str) else list(part.get("type", ()))
    words = {
        "string": "text",
        "integer": "whole number",
        "object": "mapping",
        "array": "list",
        "boolean": "true or false",
    }
    return " or ".join(words.get(kind, kind) for kind in kinds)


def _plain(value: Any) -> str:
    return {None: "null", True: "true", False: "false"}.get(value, str(value)) if _is_word(value) else str(value)


def _is_word(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _width() -> int:
    return min(_WIDTH, terminal_width() or _WIDTH)


def _columns(texts: Mapping[str, str]) -> str:
    width = max(map(len, texts)) + 2
    return "\n".join(
        textwrap.fill(f"{name:<{width}}{text}", _width(), subsequent_indent=" " * width) for name, text in texts.items()
    )
