"""What a stranger's map or adapter says of itself: facts of a wrong type are refused, and no text breaks out of its place."""

from __future__ import annotations

import ast
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from alora_trainer import ALoRAError, ImportanceMap
from alora_trainer.artefact import files
from alora_trainer.artefact.cards.adapter_card import write_adapter_card
from alora_trainer.artefact.cards.map_card import write_map_card
from alora_trainer.artefact.cards.tuning import TUNING_FILE, read_tuning
from alora_trainer.artefact.config_file import read_config
from tests.artefact.test_cards import TUNING, python_of
from tests.tiny_map import change_config, make_map

CASES = Path(__file__).resolve().parents[1] / "cases" / "maps"
MISTYPED: dict[str, Any] = json.loads((CASES / "mistyped.json").read_text())
HOSTILE: dict[str, Any] = json.loads((CASES / "hostile_facts.json").read_text())


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original") / "map"
    make_map().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("case", MISTYPED)
def test_a_fact_of_a_wrong_type_is_refused(original: Path, tmp_path: Path, case: str) -> None:
    place, value, message = (MISTYPED[case][key] for key in ("place", "value", "message"))
    folder = Path(shutil.copytree(original, tmp_path / "map"))

    def change(config: dict[str, Any]) -> None:
        for key in place[:-1]:
            config = config[key]
        config[place[-1]] = value

    change_config(folder, change)
    with pytest.raises(ALoRAError, match=message) as refusal:
        ImportanceMap.from_pretrained(folder)
    assert files.CONFIG_FILE in str(refusal.value)


@pytest.mark.parametrize(
    "facts",
    [{"cost": {"seconds": "x"}}, {"steps": -1}, {"versions": {"torch": [2]}}, {"earlier_tasks": ["path"]}],
    ids=str,
)
def test_what_nobody_could_read_is_not_saved(tmp_path: Path, facts: dict[str, Any]) -> None:
    with pytest.raises(ALoRAError, match="cannot be saved, as nobody could read it: .*"):
        make_map(**facts).save_pretrained(tmp_path / "map")
    assert not (tmp_path / "map").exists()


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    make_map(steps=numpy.int64(7), cost={"seconds": numpy.float32(1.5)}).save_pretrained(tmp_path / "map")
    info = ImportanceMap.from_pretrained(tmp_path / "map").info
    assert (info.steps, info.cost["seconds"]) == (7, 1.5)


def check_card(card: str, plain: str) -> dict[str, Any]:
    """That a card is built as the one of plain facts, and what its metadata says."""
    body = card.split("---\n", 2)[2]
    assert "{{ 7 * 7 }}" in body and not re.search(r"<(?!!-- python -->)", body)
    assert not re.search(r"(?<!\\)\]\((?!https://(arxiv|huggingface)|layer_importance.png)", body)
    rows, plain_rows = (re.findall(r"^\|.*\|$", text, re.MULTILINE) for text in (card, plain))
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [row.count("|") for row in plain_rows]
    assert [line for line in card.splitlines() if line.startswith(("#", "```", "---"))] == [
        line if "# " not in line else line.replace(plain_name(plain), plain_name(card))
        for line in plain.splitlines()
        if line.startswith(("#", "```", "---"))
    ]
    calls = [node for node in ast.walk(ast.parse(python_of(card))) if isinstance(node, ast.Call)]
    plain_calls = [node for node in ast.walk(ast.parse(python_of(plain))) if isinstance(node, ast.Call)]
    assert len(calls) == len(plain_calls)
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(metadata, dict)
    return metadata


def plain_name(card: str) -> str:
    (title,) = re.findall(r"^# (?:Importance map for|Adapter of) (.*?)(?:, tuned.*)?$", card, re.MULTILINE)
    return str(title)


def test_no_fact_breaks_out_of_a_maps_card(original: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(original, tmp_path / "map"))
    change_config(folder, lambda config: config.update(HOSTILE))
    write_map_card(read_config(folder), tmp_path / "card.md", picture=False)
    write_map_card(read_config(original), tmp_path / "plain.md", picture=False)
    card = (tmp_path / "card.md").read_text()
    metadata = check_card(card, (tmp_path / "plain.md").read_text())
    assert metadata["license"] == HOSTILE["license"] and "base_model" not in metadata
    revisions = [node.value for node in ast.walk(ast.parse(python_of(card))) if isinstance(node, ast.Constant)]
    assert HOSTILE["base_revision"] in revisions  # as a text, and as nothing else
    importance = ImportanceMap.from_pretrained(folder)
    importance.save_pretrained(tmp_path / "again")
    assert ImportanceMap.from_pretrained(tmp_path / "again").info == importance.info


def test_no_fact_breaks_out_of_an_adapters_card(tmp_path: Path) -> None:
    text = HOSTILE["estimator"]
    hostile = replace(
        TUNING,
        base_model=HOSTILE["base_model"],
        base_revision=HOSTILE["base_revision"],
        map={"repo_id": HOSTILE["base_revision"], "commit": ["x"], "estimator": text, "data": [text]},
        protection={"lam": 10**400, "layer_weights": text},
        training={text: text},
        over_merged=True,
        data=HOSTILE["data"],
        versions={text: text},
    )
    write_adapter_card(hostile, tmp_path / "card.md")
    write_adapter_card(replace(TUNING, over_merged=True), tmp_path / "plain.md")
    card = (tmp_path / "card.md").read_text()
    check_card(card, (tmp_path / "plain.md").read_text())
    assert "one that was not published" in card


@pytest.mark.parametrize(
    "changes",
    [
        {"base_model": 5},
        {"map": [1]},
        {"versions": None},
        {"over_merged": "no"},
        {"training": {"a": "\x1b[31m"}},
        {"more": 1},
    ],
    ids=str,
)
def test_a_tuning_that_is_none_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    (tmp_path / TUNING_FILE).write_text(json.dumps(json.loads(TUNING.to_json()) | changes))
    with pytest.raises(ALoRAError, match="damaged"):
        read_tuning(tmp_path)
