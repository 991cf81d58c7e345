"""One of everything from outside the package: it runs in a recipe, and the plan, the cards and the report know it."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from alora_trainer.artefact.importance_map import ImportanceMap
from alora_trainer.basics import registry
from alora_trainer.basics.registry import Registry
from alora_trainer.cli.command_line import main
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods import METHODS
from alora_trainer.importance.kinds.formats import FORMATS
from alora_trainer.importance.recording.estimators import ESTIMATORS
from alora_trainer.penalty.backends.choice import BACKENDS
from tests.tiny_recipe import make_collecting_cheap, write_all

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "plugin" / "alora_plugin_example.py"
REGISTRIES: tuple[Registry[object], ...] = (ESTIMATORS, FORMATS, BACKENDS, METHODS)  # type: ignore[assignment]
SETTINGS = [
    *("--methods", "base,alora,decayed", "--alora.record", "squared_movement", "--alora.backend", "whole_matrix"),
    *("--map.storage", "linear8", "--method_options.decayed.strength", "0.25", "--tune.max_steps", "2"),
]


def install(site: Path, name: str, module: str) -> None:
    """What pip would leave of a package that names a plugin: its entry point."""
    about = site / f"{name}-0.1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    (about / "entry_points.txt").write_text(f"[alora_trainer.plugins]\nexample = {module}\n")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The example is installed, and nothing was looked up yet; afterwards the registries are as they were."""
    make_collecting_cheap()
    site = tmp_path_factory.mktemp("site")
    install(site, "alora-plugin-example", "alora_plugin_example")
    (site / "alora_plugin_example.py").write_text(EXAMPLE.read_text())
    before = [set(names) for names in REGISTRIES]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        patch.setattr(registry, "_loaded", False)
        # What `main` sets for its own process is no business of the other tests.
        patch.setattr("alora_trainer.cli.command_line.configure_output", lambda: None)
        yield
    for names, known in zip(REGISTRIES, before, strict=True):
        for name in set(names) - known:
            names.remove(name)
    sys.modules.pop("alora_plugin_example", None)


@pytest.fixture(scope="module")
def work(installed: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the example was tried in."""
    folder = tmp_path_factory.mktemp("plugins")
    recipe = str(write_all(folder))
    assert main(["run", recipe, "--output_dir", str(folder / "run"), *SETTINGS]) == 0
    assert main(["plan", recipe, "--device", "4090", "--output", str(folder / "plan.json"), *SETTINGS]) == 0
    assert main(["report", str(folder / "run"), "--output_dir", str(folder / "report")]) == 0
    return folder


def test_what_a_plugin_brings_runs_in_a_recipe(work: Path) -> None:
    methods = json.loads((work / "run" / "results.json").read_text())["methods"]
    assert list(methods) == ["base", "alora", "decayed"]
    # The map is read again, every value of it checked.
    assert ImportanceMap.from_pretrained(work / "run" / "record" / "map").storage == "linear8"
    assert methods["decayed"]["train"]["loss"] > methods["alora"]["train"]["loss"]  # its loss has the squares in it


def test_the_plan_the_cards_and_the_report_know_it(work: Path) -> None:
    plan = json.loads((work / "plan.json").read_text())
    assert "tune decayed" in plan["stages"] and plan["omega_bytes"]["linear8"] > 0
    map_card = (work / "run" / "record" / "map" / "README.md").read_text()
    assert "the squares of the optimizer's movements" in map_card and "linear8" in map_card
    assert "whole_matrix" in (work / "run" / "alora" / "adapter" / "README.md").read_text()
    assert "| decayed" in (work / "report" / "report.md").read_text()


def test_its_backend_computes_the_penalty(work: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "alora_trainer")
    importance = str(work / "run" / "record" / "map")
    settings = ["--importance", importance, "--output_dir", str(tmp_path), *SETTINGS]
    assert main(["tune", str(work / "recipe.yaml"), "--method", "alora", *settings]) == 0
    assert "linear8 importance, computed by whole_matrix" in caplog.text


def test_a_misspelt_name_of_a_plugins_is_told(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(work / "recipe.yaml"), "--alora.record", "squared_movment"]) == 2
    assert "did you mean 'squared_movement'?" in capsys.readouterr().err


def test_a_plugin_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "broken", "no_such_module")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "_loaded", False)
    for _ in range(2):  # said every time, not only the first
        with pytest.raises(ALoRAError, match=r"the plugin 'example' \(no_such_module\) cannot be imported"):
            list(ESTIMATORS)
