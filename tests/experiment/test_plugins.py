"""One of everything from outside the package: it runs in a recipe, and the plan, the cards and the report know it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_recipe import write_all

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "plugin"

# In a process of its own: what a plugin registers stays registered.
WORK = """
import sys
from pathlib import Path
from alora_trainer.artefact.importance_map import ImportanceMap
from alora_trainer.cli import main

folder = Path(sys.argv[1])
settings = ["--methods", "base,alora,decayed", "--alora.record", "squared_movement", "--alora.backend", "whole_matrix"]
settings += ["--map.storage", "linear8", "--method_options.decayed.strength", "0.25"]
assert main(["run", str(folder / "recipe.yaml"), "--output_dir", str(folder / "run"), *settings]) == 0
assert main(["plan", str(folder / "recipe.yaml"), "--device", "4090", "--json", str(folder / "plan.json"), *settings]) == 0
assert main(["report", str(folder / "run"), "--output_dir", str(folder / "report")]) == 0
assert main(["plan", str(folder / "recipe.yaml"), "--alora.record", "squared_movment"]) == 2
importance = ImportanceMap.from_pretrained(folder / "run" / "record" / "map")
print("STORAGE", importance.storage)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the example is installed, as pip would leave it: its module, and what it says of itself."""
    site = tmp_path_factory.mktemp("site")
    about = site / "alora_plugin_example-0.1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: alora-plugin-example\nVersion: 0.1.0\n")
    (about / "entry_points.txt").write_text("[alora_trainer.plugins]\nexample = alora_plugin_example\n")
    (site / "alora_plugin_example.py").write_text((EXAMPLE / "alora_plugin_example.py").read_text())
    own = str(EXAMPLE.parents[1])
    return os.environ | {"PYTHONPATH": os.pathsep.join([own, str(site), os.environ.get("PYTHONPATH", "")])}


@pytest.fixture(scope="module")
def work(installed: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The folder that the example was tried in, and what that printed."""
    folder = tmp_path_factory.mktemp("plugins")
    write_all(folder)
    done = subprocess.run(
        [sys.executable, "-c", WORK, str(folder)], env=installed, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout, done.stderr


def test_what_a_plugin_brings_runs_in_a_recipe(work: tuple[Path, str, str]) -> None:
    folder, printed, said = work
    methods = json.loads((folder / "run" / "results.json").read_text())["methods"]
    assert list(methods) == ["base", "alora", "decayed"]
    assert "STORAGE linear8" in printed  # and the map was read again, every value of it checked
    assert "linear8 importance, computed by whole_matrix" in said
    assert methods["decayed"]["train"]["loss"] > methods["alora"]["train"]["loss"]  # its loss has the squares in it


def test_the_plan_the_cards_and_the_report_know_it(work: tuple[Path, str, str]) -> None:
    folder, _, _ = work
    plan = json.loads((folder / "plan.json").read_text())
    assert "tune decayed" in plan["stages"] and plan["omega_bytes"]["linear8"] > 0
    map_card = (folder / "run" / "record" / "map" / "README.md").read_text()
    assert "the squares of the optimizer's movements" in map_card and "linear8" in map_card
    assert "whole_matrix" in (folder / "run" / "alora" / "adapter" / "README.md").read_text()
    assert "| decayed" in (folder / "report" / "report.md").read_text()


def test_a_misspelt_name_of_a_plugins_is_told(work: tuple[Path, str, str]) -> None:
    assert "did you mean 'squared_movement'?" in work[2]


def test_a_plugin_that_cannot_be_imported_is_named(installed: dict[str, str], tmp_path: Path) -> None:
    about = tmp_path / "broken-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[alora_trainer.plugins]\nmine = no_such_module\n")
    code = """
from alora_trainer.errors import ALoRAError
from alora_trainer.importance.recording.estimators import ESTIMATORS
try:
    list(ESTIMATORS)
except ALoRAError:
    list(ESTIMATORS)  # said every time, not only the first
"""
    environment = installed | {"PYTHONPATH": os.pathsep.join([installed["PYTHONPATH"], str(tmp_path)])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.count("ALoRAError: the plugin 'mine' (no_such_module) cannot be imported") == 2
