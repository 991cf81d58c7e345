"""The reference of Python: every public name is described, and stands in it."""

from __future__ import annotations

import ast
import inspect
import re
from importlib import import_module
from typing import Any

import pytest

import alora_trainer
from tests.docs.pages import ROOT, blocks, pages, text_of

REFERENCE = ("docs/api/package.md", "docs/api/building.md")
_DIRECTIVE = re.compile(r"^\.\. auto(\w+):: ([\w.]+)\n((?:   :.*\n)*)", re.MULTILINE)
ENTRIES = {name: (kind, options) for page in REFERENCE for kind, name, options in _DIRECTIVE.findall(text_of(page))}
PUBLIC = sorted(set(dir(alora_trainer)) - {"__version__", "demo"})


def _get(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


def test_every_public_name_of_the_package_is_in_the_reference() -> None:
    assert [name for name in PUBLIC if f"alora_trainer.{name}" not in ENTRIES] == [] and len(PUBLIC) > 10
    assert set(alora_trainer.__all__) - {"__version__"} <= set(PUBLIC)


def test_what_examples_and_pages_import_is_in_the_reference() -> None:
    """So what is not in it may change without a word, and nobody is told to use it."""
    sources = [block.code for page in pages() for block in blocks(page) if block.language == "python"]
    sources += [path.read_text(encoding="utf-8") for path in sorted((ROOT / "examples").rglob("*.py"))]
    imported = {
        (node.module, alias.name)
        for source in sources
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("alora_trainer")
        for alias in node.names
    }
    known = {id(_get(name)) for name in ENTRIES}
    found = {f"{module}.{name}": _get(f"{module}.{name}") for module, name in sorted(imported)}
    missing = [name for name, value in found.items() if not (inspect.ismodule(value) or id(value) in known)]
    assert len(imported) > 20 and missing == []


@pytest.mark.parametrize("name", ENTRIES)
def test_what_is_in_the_reference_says_what_it_is(name: str) -> None:
    found, (kind, options) = _get(name), ENTRIES[name]
    if kind == "data":
        return
    assert inspect.isclass(found) == (kind in ("class", "exception"))
    assert len((inspect.getdoc(found) or "").split()) >= 5
    if ":members:" in options:
        own = {key: value for key, value in vars(found).items() if not key.startswith("_")}
        public = {
            key
            for key, value in own.items()
            if callable(value) or isinstance(value, (property, classmethod, staticmethod))
        }
        undocumented = [key for key in sorted(public) if not inspect.getdoc(getattr(found, key))]
        assert undocumented == []


@pytest.mark.parametrize("name", [name for name in PUBLIC if inspect.isfunction(getattr(alora_trainer, name))])
def test_every_argument_of_a_public_function_is_described(name: str) -> None:
    found = getattr(alora_trainer, name)
    text = inspect.getdoc(found) or ""
    missing = [
        argument
        for argument in inspect.signature(found).parameters
        if not re.search(rf"^ +[\w, ]*\b{argument}\b[\w, ]*:", text, re.M)
    ]
    assert missing == []
