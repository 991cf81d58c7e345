"""Every code block of the documentation is run (test_run.py), or says why it is not; then at least its form is looked at."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from alora_trainer.cli.command_line import make_parser
from alora_trainer.experiment.recipe.schema.check import check_value
from alora_trainer.experiment.recipe.schema.known import followed, schema
from tests.docs.pages import ROOT, Block, blocks, pages

LANGUAGES = {"bash", "python", "yaml"}
ALL = [block for page in pages() for block in blocks(page)]


def test_blocks_are_in_a_language_that_is_looked_at_and_reasons_are_given() -> None:
    wrong = [f"{block}: {block.language!r}" for block in ALL if block.language not in LANGUAGES]
    wrong += [f"{block}: no reason" for block in ALL if block.not_run == ""]
    assert wrong == [] and len(ALL) > 30


def test_who_is_said_to_run_a_block_is_there() -> None:
    for block in ALL:
        for name in re.findall(r"(?:tests|how-to)/[\w/-]+(?:\.\w+)?", block.mark):
            assert (ROOT / name).exists() or (ROOT / "docs" / name).exists(), f"{block}: {name}"
        if block.run_by:
            assert block.mark in (ROOT / block.run_by).read_text(encoding="utf-8"), block


@pytest.mark.parametrize("block", [one for one in ALL if one.language == "bash"], ids=str)
def test_every_command_line_parses(block: Block) -> None:
    parser = make_parser()
    for line in block.code.replace("\\\n", " ").splitlines():
        if line.startswith("alora "):
            arguments = shlex.split(line, comments=True)[1:]
            if "--version" in arguments or arguments[0].startswith("--list"):
                continue
            known, rest = parser.parse_known_args(arguments)
            assert known.command == arguments[0]
            # What is no option of the command is a setting of a recipe, by its dotted name, or one of the few without a dot.
            strange = [word for word in rest if word.startswith("--") and "." not in word]
            assert set(strange) <= {f"--{name}" for name in schema()["properties"]}, strange


@pytest.mark.parametrize("block", [one for one in ALL if one.language == "python"], ids=str)
def test_every_python_block_compiles(block: Block) -> None:
    ast.parse(block.code)


@pytest.mark.parametrize("block", [one for one in ALL if one.language == "yaml" and one.not_run is None], ids=str)
def test_every_piece_of_a_recipe_has_keys_and_values_that_a_recipe_can_have(block: Block) -> None:
    given = yaml.safe_load(block.code)
    for key, value in given.items():
        part = schema()["properties"][key]  # a KeyError names what is no section
        for name, setting in value.items() if isinstance(value, dict) else ():
            known = dict(_properties(part))
            assert name in known or _is_open(part), f"{key}.{name}"
            if name in known:
                check_value(setting, known[name], f"{key}.{name}")
        if not isinstance(value, dict):
            check_value(value, part, key)


def _properties(part: Mapping[str, Any]) -> list[tuple[str, Any]]:
    part = followed(part)
    inner = [pair for branch in part.get("anyOf", ()) for pair in _properties(branch)]
    return [*part.get("properties", {}).items(), *inner]


def _is_open(part: Mapping[str, Any]) -> bool:
    return followed(part).get("additionalProperties") not in (None, False)
