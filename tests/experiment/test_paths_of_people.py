"""Folders and files as people call them: with spaces, emoji and letters of their own, everywhere in a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import yaml

from alora_trainer.experiment.methods import get_method
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.run.whole_recipe import evaluate_recipe, record_recipe, tune_recipe
from tests.tiny_recipe import make_collecting_cheap, write_all

NAMES = {"model": "mein Modell 🤖", "words_train.jsonl": "wörter 📚.jsonl", "sums_test.jsonl": "sums & 'more' 🧮.jsonl"}


def renamed(folder: Path) -> Path:
    """The tiny recipe with such names; its path."""
    recipe = write_all(folder)
    settings = yaml.safe_load(recipe.read_text())
    for name, other in NAMES.items():
        (folder / name).rename(folder / other)
    settings["model"]["path"] = NAMES["model"]
    settings["general"] |= {"train": NAMES["words_train.jsonl"], "test": {"wörter 📚 2": "words_test.jsonl"}}
    settings["domain"]["test"] = NAMES["sums_test.jsonl"]
    settings["evaluation"]["limit"] = 2
    for section in ("record", "tune"):
        settings[section]["max_steps"] = 1
    recipe = folder / "mein Rezept 🍰.yaml"
    recipe.write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
    return recipe


def test_spaces_and_emoji_in_every_path(tmp_path: Path) -> None:
    make_collecting_cheap()
    folder = tmp_path / "zu Hause 🏠"
    folder.mkdir()
    recipe = load_recipe(renamed(folder))
    recorded = record_recipe(recipe, output_dir=folder / "Lauf 🎈 1")
    moved = Path(shutil.copytree(recorded, folder / "Karte 🗺 1"))
    output, alora = folder / "Lauf 🎈 2", get_method("alora")
    adapter = tune_recipe(recipe, alora, output_dir=output, importance=moved)
    assert (adapter / "adapter_model.safetensors").is_file()
    results = evaluate_recipe(recipe, output_dir=output, method=alora)
    assert results.methods["alora"].general.subsets.keys() == {"wörter 📚 2"}
    assert json.loads((output / "results.json").read_text(encoding="utf-8"))["methods"]["alora"]
    assert load_recipe(output / "recipe.yaml").resolved() == recipe.resolved()
