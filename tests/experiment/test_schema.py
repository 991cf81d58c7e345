"""The recipe's schema: equal to what the dataclasses say, right about every shipped recipe, never stricter than reading one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from alora_trainer.basics.versions import package_version
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment import demo
from alora_trainer.experiment.fit.request import FitRequest
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.recipe.schema import known
from alora_trainer.experiment.recipe.schema.build import LIBRARIES, attribute_texts, json_types, recipe_schema
from alora_trainer.experiment.recipe.schema.check import check_file
from alora_trainer.experiment.recipe.schema.lists import method_names, methods_text, settings_page, settings_text
from tests.tiny_recipe import SETTINGS

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
OURS = ("model", "domain", "alora", "map", "fisher", "curvature", "evaluation", "general")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(SETTINGS, sort_keys=False), encoding="utf-8")
    return path


def test_the_file_is_what_the_dataclasses_say() -> None:
    """With other versions of peft and transformers, all but their own settings."""
    made, kept = recipe_schema(), json.loads(known.schema_text())
    for library in LIBRARIES:
        if package_version(library) != kept["x-made-with"][library]:
            del made["x-made-with"][library], kept["x-made-with"][library]
            for schema in (made, kept):
                schema["definitions"] = {
                    name: part for name, part in schema["definitions"].items() if part.get("x-of") != library
                }
    anew = "write it anew: alora schema --here > .../schema/recipe.schema.json"
    assert list(differences(json.loads(json.dumps(made)), kept)) == [], anew


def differences(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """The places at which two parts of a schema differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {**one, **other}:
            yield from differences(one.get(key), other.get(key), f"{where}/{key}")
    elif one != other:
        yield f"{where}: {one!r} and {other!r}"


def test_the_page_is_what_the_schema_says() -> None:
    page = (ROOT / "docs" / "recipe_settings.md").read_text(encoding="utf-8")
    assert page == settings_page(), "write it anew: alora schema --page > docs/recipe_settings.md"


@pytest.mark.parametrize("path", [*RECIPES, demo.RECIPE], ids=lambda path: path.stem)
def test_every_recipe_names_the_schema_and_passes(path: Path, tmp_path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    named = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert named is not None
    assert (path.parent / named[1]).resolve() == Path(known.__file__).with_name(known.SCHEMA_FILE).resolve()
    variables = {"ALORA_SHARED": str(tmp_path), "ALORA_DEMO_MODEL": str(tmp_path), "ALORA_DEMO_DATA": str(tmp_path)}
    for model in ("base-5m", "base-1m"):
        (tmp_path / "models" / model).mkdir(parents=True)
    check_file(path, variables=variables)


OF_TRANSFORMERS = {"tune.learnin_rate", "tune.seed", "method_options.lora.tune.max_step"}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lam", "0.3", "unknown key lam: did you mean alora.lam"),
        ("lam_schedul", "linear", r"unknown key lam_schedul: did you mean alora\.lam_schedule"),
        ("train.learning_rate", "1", r"did you mean record\.learning_rate or tune\.learning_rate"),
        ("base_model", "x", r"did you mean model\.path"),
        ("sed", "1", "unknown key sed: did you mean seed"),
        ("zzz", "1", "unknown key zzz: known are name, seed"),
        ("tune.learnin_rate", "1", r"did you mean tune\.learning_rate"),
        ("tune.seed", "1", r"unknown key tune\.seed"),
        ("methods", "base,alor", "methods='alor' is unknown: did you mean 'alora'"),
        ("method_options.replya.fraction", "1", r"did you mean method_options\.replay"),
        ("method_options.replay.fractoin", "0.1", r"did you mean method_options\.replay\.fraction"),
        ("method_options.lora.tune.max_step", "1", r"did you mean method_options\.lora\.tune\.max_steps"),
        ("tune.learning_rate", "fast", r"tune\.learning_rate='fast' must be a number"),
        ("domain.max_length", "1.5", r"domain\.max_length=1\.5 must be a whole number"),
        ("alora.normalize", "perhaps", r"alora\.normalize='perhaps' must be true or false"),
        ("domain.task", "scqi", r"domain\.task='scqi' is unknown: did you mean 'sciq'"),
        ("domain.task.prompt", "prompt", r"it names no column.* domain\.task\.prompt: \"\{prompt\}\""),
        ("domain.task.promt", "{x}", r"did you mean domain\.task\.prompt"),
        ("general.test", "{words: {pat: a.jsonl}}", r"did you mean general\.test\.words\.path"),
        ("model.path", "./modle", r"there is no model folder \./modle .*did you mean \./model\?"),
        ("model.path", "./none", r"there is no model folder \./none"),
        ("model.path", "model/none", "there is no model folder model/none"),
    ],
)
def test_a_mistake_is_found_without_torch_and_by_reading_in_full(
    recipe: Path, key: str, value: str, message: str
) -> None:
    # Another transformers may have other arguments: what is not one of them is found by reading alone.
    if not (key in OF_TRANSFORMERS and known.is_open(known.definition("training"))):
        with pytest.raises(ALoRAError, match=message):
            check_file(recipe, {key: value})
    with pytest.raises(ALoRAError):
        load_recipe(recipe, {key: value}).resolved()


def test_a_source_is_looked_into(recipe: Path) -> None:
    """Reading a recipe in full leaves what is in a source to whoever opens it."""
    with pytest.raises(ALoRAError, match=r"did you mean domain\.train\.text_column"):
        check_file(recipe, {"domain.train": "{path: a.jsonl, text_colum: x}"})
    with pytest.raises(ALoRAError, match=r"domain\.train=3 is not of a form that it can have"):
        check_file(recipe, {"domain.train": "3"})


def names() -> Iterator[tuple[str, str, list[Any]]]:
    for section in OURS:
        for key, part in known.properties_of(section).items():
            if "enum" in part:
                yield section, key, part["enum"]


@pytest.mark.parametrize(("section", "key", "allowed"), list(names()), ids=lambda one: str(one)[:20])
def test_names_are_those_that_the_dataclasses_take(recipe: Path, section: str, key: str, allowed: list[Any]) -> None:
    """A name that is none is refused by both; of those that are some, reading in full calls none unknown."""
    for check in (check_file, load_recipe):
        with pytest.raises(ALoRAError, match="unknown|must be one of"):
            check(recipe, {f"{section}.{key}": "no-such-name"})
    for name in allowed:
        override = {f"{section}.{key}": "null" if name is None else name}
        check_file(recipe, override)
        try:
            load_recipe(recipe, override)
        except ALoRAError as error:  # it may need other settings beside it
            assert "unknown" not in str(error) and "must be one of" not in str(error)


def test_values_as_people_write_them_pass(recipe: Path) -> None:
    given = {
        "tune.learning_rate": "1e-4",
        "seed": "'7'",
        "methods": "base, lora",
        "alora.xi": "5%",
        "alora.start": "fresh",
    }
    given |= {"domain.train": "[a.jsonl]", "general.train": "self", "lora.target_modules": "q_proj,v_proj"}
    del given["domain.train"]
    check_file(recipe, given)
    load_recipe(recipe, given)
    check_file(recipe, {"general.train": "[a.jsonl, {hub: x/y, split: train}]", "lora": "null"})


def test_another_version_of_a_library_and_a_plugin_are_left_to_reading_in_full(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "package_version", lambda name: "999")
    check_file(recipe, {"tune.brand_new": "1", "lora.brand_new": "1"})
    monkeypatch.setattr(known, "has_plugins", lambda: True)
    check_file(recipe, {"methods": "base,theirs", "method_options.theirs.x": "1", "alora.storage": "theirs"})
    with pytest.raises(ALoRAError, match="unknown key alora.lamb"):
        check_file(recipe, {"alora.lamb": "1"})


def test_the_check_imports_nothing_heavy_and_is_quick(tmp_path: Path) -> None:
    """By processor time: the machine may have other things to do."""
    (tmp_path / "models" / "base-5m").mkdir(parents=True)
    code = (
        "import resource, sys, alora_trainer.cli as cli\n"
        f"assert cli.main(['check', {str(ROOT / 'recipes' / 'small-sciq.yaml')!r}]) == 0\n"
        f"assert cli.main(['run', {str(ROOT / 'recipes' / 'small-sciq.yaml')!r}, '--methods', 'alor']) == 2\n"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'lm_eval', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "assert used.ru_utime + used.ru_stime < 1.5, used\n"  # two recipes; a third of it on an idle machine
    )
    environment = {"ALORA_SHARED": str(tmp_path), "PATH": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "keys, types and names are right" in done.stdout
    assert "did you mean 'alora'?" in done.stderr


def test_lists() -> None:
    assert "kfac" in method_names() and len(methods_text().splitlines()) >= len(method_names())
    assert "evaluation" in settings_text()
    assert settings_text("alora.lam").startswith("alora.lam (number or text or null")
    assert settings_text("method_options.replay").startswith("fraction (number, default")
    with pytest.raises(ALoRAError, match="there is no setting alora.lamb: known are record"):
        settings_text("alora.lamb")


def test_texts_and_types_of_a_dataclass() -> None:
    class Described:
        """One.

        Attributes:
            first: a text
                that goes on.
            second, third: of both; None is ``x``.

        Raises:
            fourth: is none.
        """

    assert attribute_texts(Described) == {
        "first": "a text that goes on.",
        "second": "of both; None is `x`.",
        "third": "of both; None is `x`.",
    }
    assert json_types(float | str | None) == ["number", "string", "null"]
    assert json_types(str | float | None) == json_types(float | str | None)
    assert json_types(list[str] | dict[str, Any]) == ["array", "object"]
    assert json_types(Path | None) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("learning_rte", r"unknown key learning_rte: did you mean tune\.learning_rate"),
        ("train.learning_rate", r"did you mean record\.learning_rate or tune\.learning_rate"),
        ("zzz.a", "unknown key zzz.a: known are name, seed"),
    ],
)
def test_a_fits_settings_are_known_before_its_data_are_looked_at(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ALoRAError, match=message):
        FitRequest("no-model", ("none.jsonl",), tmp_path, overrides={name: "1"})
