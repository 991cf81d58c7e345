"""Recipes: every one that is shipped parses, and whatever is wrong in one is said in a line that helps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.recipe.reading import build_recipe, load_recipe
from alora_trainer.experiment.recipe.settings import coerce, interpolate, parse_yaml
from tests.tiny_recipe import SETTINGS

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
# Those that run on a CPU with the data beside the repository; tests/experiment/test_recipes.py goes through all.
RECIPES = sorted([*FOLDER.glob("small-*.yaml"), *FOLDER.glob("study-*.yaml")])


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(SETTINGS, sort_keys=False), encoding="utf-8")
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_parses(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert {"base", "lora", "lora_ab", "alora"} <= {method.name for method in recipe.methods}
    assert recipe.model.dtype == "float32"
    assert isinstance(recipe.tune["learning_rate"], float)
    assert recipe.general.train_tokens is not None


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_names_files_that_exist(path: Path, shared: Path) -> None:
    resolved = load_recipe(path, variables={"ALORA_SHARED": str(shared)}).resolved()
    sources = [*resolved["general"]["train"].values(), *resolved["general"]["test"].values()]
    sources += [resolved["domain"][key] for key in ("train", "test", "source") if resolved["domain"][key]]
    assert len(sources) >= 13
    assert all(Path(source).is_file() for source in sources)
    assert Path(resolved["model"]["path"]).is_dir()


def test_science_books_are_no_general_text_where_science_is_the_domain() -> None:
    recipe = load_recipe(RECIPES[0].parent / "small-sciq.yaml")
    assert "openstax_science" not in {*recipe.general.train, *recipe.general.test}


def test_the_demo_recipe_parses() -> None:
    from alora_trainer.experiment import demo

    recipe = load_recipe(demo.RECIPE, variables={"ALORA_DEMO_DATA": "data", "ALORA_DEMO_MODEL": "model"})
    assert recipe.name == "demo"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"sead": "1"}, "unknown key sead: did you mean seed?"),
        ({"tune.learnin_rate": "1e-4"}, "unknown key tune.learnin_rate: did you mean tune.learning_rate?"),
        ({"record.max_step": "1"}, "unknown key record.max_step: did you mean record.max_steps?"),
        ({"lora.lora_alfa": "1"}, "unknown key lora.lora_alfa: did you mean lora.lora_alpha?"),
        ({"alora.lambda": "1"}, "unknown key alora.lambda"),
        ({"model.pth": "x"}, "unknown key model.pth: did you mean model.path?"),
        ({"general.block_lenght": "1"}, "unknown key general.block_lenght: did you mean general.block_length?"),
        ({"domain.trian": "x"}, "unknown key domain.trian: did you mean domain.train?"),
        ({"evaluation.batchsize": "1"}, "unknown key evaluation.batchsize: did you mean evaluation.batch_size?"),
        ({"methods": "base,lora_b"}, "methods='lora_b' is unknown: did you mean 'lora_ab'?"),
        ({"methods": "lora,lora"}, "names one of them twice"),
        ({"methods": "[]"}, "must be a list of methods"),
        ({"seed": "x"}, "seed='x' must be a whole number"),
        ({"seed": "-1"}, "seed=-1 must lie between"),
        ({"tune.learning_rate": "fast"}, "tune.learning_rate='fast' must be a number"),
        ({"tune.max_steps": "1.5"}, "tune.max_steps=1.5 must be a whole number"),
        ({"tune.bf16": "1"}, "tune.bf16=1 must be true or false"),
        ({"tune.output_dir": "x"}, "tune.output_dir cannot be set"),
        ({"record.seed": "1"}, "record.seed cannot be set"),
        ({"tune.lr_scheduler_type": "zigzag"}, "tune: "),
        ({"lora.layers_pattern": "x"}, "lora: "),
        ({"lora": "8"}, "lora=8 must be a mapping"),
        ({"lora.r.x": "8"}, "lora.r is 2, which has no keys"),
        ({"alora.lam": "-1"}, "lam=-1"),
        ({"alora.record": "null"}, "alora.record is null"),
        ({"model.dtype": "float3"}, "model.dtype='float3' is unknown"),
        ({"tune.weight_decay": "[1"}, "is not valid YAML"),
        ({"domain.task": "sciqq"}, "sciq"),
        ({".x": "1"}, "no name of a setting"),
    ],
)
def test_what_is_wrong_is_named(recipe_file: Path, override: dict[str, str], message: str) -> None:
    with pytest.raises(ALoRAError) as caught:
        load_recipe(recipe_file, override)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("section", ["model", "general", "domain"])
def test_a_missing_section_is_named(section: str) -> None:
    with pytest.raises(ALoRAError, match=f"the recipe has no {section}\\."):
        build_recipe({key: value for key, value in SETTINGS.items() if key != section})


def test_what_is_compared_and_made_where_a_recipe_does_not_say() -> None:
    """As the board decided: curvature, which also says where to start.

    A recipe with methods makes what they are held by, and one that says what makes that.
    """
    silent = {key: value for key, value in SETTINGS.items() if key not in ("methods", "importance")}
    recipe = build_recipe(silent)
    assert [method.name for method in recipe.methods] == ["base", "lora", "kfac_natural"]
    assert recipe.importance == "kronecker"
    for methods, made in (
        (["base", "lora"], "kronecker"),
        (["base", "lora_ab", "kfac"], "recorded"),
        (["ewclora_true", "alora"], "fisher_true"),
        (["si_full", "ekfac"], "ekfac"),  # full tuning takes no map
    ):
        assert build_recipe(silent | {"methods": methods}).importance == made
        assert build_recipe(silent | {"methods": methods, "importance": "covariance"}).importance == "covariance"


def test_overrides_take_the_type_of_their_field(recipe_file: Path) -> None:
    overrides = {
        "tune.learning_rate": "1e-4",
        "tune.max_steps": "1e3",
        "tune.save_strategy": "no",
        "tune.gradient_checkpointing": "true",
        "methods": "base,lora",
        "lora.target_modules": "q_proj, k_proj",
        "alora.lam": "3e-1",
        "alora.normalize": "false",
        "general.train.more": "more.jsonl",
        "seed": "1",
        "name": "12",
    }
    with pytest.raises(ALoRAError, match="general.train"):
        load_recipe(recipe_file, overrides)  # there, general.train is one source and not a mapping
    del overrides["general.train.more"]
    recipe = load_recipe(recipe_file, overrides | {"general.test.more": "more.jsonl"})
    assert recipe.tune["learning_rate"] == 1e-4
    assert recipe.tune["max_steps"] == 1000 and isinstance(recipe.tune["max_steps"], int)
    assert recipe.tune["save_strategy"] == "no"
    assert recipe.tune["gradient_checkpointing"] is True
    assert [method.name for method in recipe.methods] == ["base", "lora"]
    assert recipe.lora["target_modules"] == ["q_proj", "k_proj"]
    assert recipe.alora.lam == 0.3 and recipe.alora.normalize is False
    assert set(recipe.general.test) == {"words", "more"}
    assert recipe.seed == 1 and recipe.name == "12"
    assert recipe.written["tune"]["learning_rate"] == 1e-4


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-2E+3", -2000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("12", 12),
        ("1_000", 1000),
        ("no", "no"),
        ("on", "on"),
    ],
)
def test_yaml_reads_numbers_and_words_as_people_do(text: str, value: Any) -> None:
    read = parse_yaml(text, "it")
    assert read == value and type(read) is type(value)
    assert math.isinf(parse_yaml(".inf", "it"))
    assert parse_yaml("2026-11-23", "it") == "2026-11-23"


def test_a_key_that_is_there_twice_is_an_error() -> None:
    with pytest.raises(ALoRAError, match="line 2: the key 'a' is there twice"):
        parse_yaml("a: 1\na: 2\n", "it")


def test_coerce_leaves_alone_what_it_cannot_judge() -> None:
    assert coerce({"a": 1}, dict | str | None, "x") == {"a": 1}
    assert coerce("all-linear", str | list[str] | None, "x") == "all-linear"
    assert coerce(None, float | None, "x") is None
    assert coerce("0.5", float | None, "x") == 0.5
    with pytest.raises(ALoRAError, match="x has no value"):
        coerce(None, float, "x")
    with pytest.raises(ALoRAError, match="must be a number"):
        coerce(True, float, "x")


def test_variables() -> None:
    variables = {"A": "one", "EMPTY": ""}
    value = {"x": ["${A}/${B:-two}", 3], "y": "${EMPTY:-none}${EMPTY}", "z": "{question} $A"}
    assert interpolate(value, variables) == {"x": ["one/two", 3], "y": "none", "z": "{question} $A"}
    with pytest.raises(ALoRAError, match=r"uses \$\{B\}, which is not set: export B=\.\.\. first"):
        interpolate({"x": "${B}"}, variables)


def test_the_resolved_recipe_does_the_same_from_anywhere(recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    resolved = load_recipe(recipe_file).resolved()
    elsewhere = tmp_path / "elsewhere" / "recipe.yaml"
    elsewhere.parent.mkdir()
    elsewhere.write_text(yaml.safe_dump(resolved), encoding="utf-8")
    assert load_recipe(elsewhere).resolved() == resolved
    assert resolved["domain"]["train"] == str(tmp_path / "sums_train.jsonl")
    assert resolved["general"]["test"] == {"words": str(tmp_path / "words_test.jsonl")}
    assert resolved["alora"]["record"] == "projected"


def test_a_missing_model_folder_is_named(recipe_file: Path) -> None:
    with pytest.raises(ALoRAError, match=r"there is no model folder \./none"):
        load_recipe(recipe_file, {"model.path": "./none"}).resolved()


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ALoRAError, match="none.yaml cannot be read: No such file"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- a\n", encoding="utf-8")
    with pytest.raises(ALoRAError, match="must be a mapping"):
        load_recipe(tmp_path / "list.yaml")
