"""Recipes as earlier versions wrote them: read with a warning, and the same recipe."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods import get_method
from alora_trainer.experiment.recipe.reading import load_recipe
from tests import tiny_recipe


@pytest.fixture(scope="module")
def recipe_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_recipe.write_all(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize(
    ("older", "today", "warned"),
    [
        ({"alora.save_storage": "float32"}, {"map.storage": "float32"}, "say map.storage"),
        ({"alora.save_storage": "null"}, {"map.storage": "null"}, "say map.storage"),
        ({"alora.start": "continue"}, {"alora.start": "recorded"}, "say start='recorded'"),
        ({"alora.start": "fresh"}, {"alora.start": "merged"}, "say start='merged'"),
        (
            {"alora.start": "fresh", "alora.fresh_base": "bare", "fresh_lora": "{r: 3}"},
            {"alora.start": "bare", "fresh_lora": "{r: 3}"},
            "say start='bare'",
        ),
    ],
)
def test_an_older_spelling_is_the_same_recipe(recipe_path, older, today, warned):
    with pytest.warns(FutureWarning, match=warned):
        one = load_recipe(recipe_path, older)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        other = load_recipe(recipe_path, today)
    assert one.resolved() == other.resolved()
    assert "save_storage" not in one.resolved()["alora"] and "fresh_base" not in one.resolved()["alora"]


def test_an_older_spelling_of_one_method_alone(recipe_path):
    settings = {"alora.start": "fresh", "method_options.alora.alora.fresh_base": "bare"}
    with pytest.warns(FutureWarning):
        recipe = load_recipe(recipe_path, settings)
    assert (recipe.alora.start, recipe.for_method(get_method("alora")).alora.start) == ("merged", "bare")


def test_one_thing_in_both_spellings_is_refused(recipe_path):
    with pytest.raises(ALoRAError, match=r"alora\.save_storage is an older spelling of map\.storage: leave it out"):
        load_recipe(recipe_path, {"alora.save_storage": "log8", "map.storage": "float32"})


def test_a_format_that_there_is_not(recipe_path):
    with pytest.raises(ALoRAError, match="map.storage='int8' is unknown: use one of 'float32'"):
        load_recipe(recipe_path, {"map.storage": "int8"})


def test_a_budget_for_one_method_lets_its_lambda_be_found(recipe_path):
    """What nobody set is not fixed by the section that it was left out of."""
    settings = {"alora": "{}", "general.train_tokens": "160", "method_options.alora.alora.budget": "0.01"}
    recipe = load_recipe(recipe_path, settings)
    assert recipe.alora.lam is None and recipe.resolved()["alora"]["lam"] is None
    own = recipe.for_method(get_method("alora")).alora
    assert own.lam is None and own.budget == 0.01


def test_a_recipe_that_says_nothing_of_strength_has_a_budget_where_there_is_text_to_keep_it_on(recipe_path):
    def strength(method: str, **settings: str) -> tuple[object, object]:
        given = {"alora": "{}", "general.train_tokens": "160"} | {
            name.replace("__", "."): value for name, value in settings.items()
        }
        own = load_recipe(recipe_path, given).for_method(get_method(method)).alora
        return own.lam, own.budget

    assert strength("alora") == strength("kfac") == (None, 0.01)
    assert strength("lora") == (None, None)  # holds nothing
    assert strength("alora", general__train_tokens="null") == (None, None)  # a number by the kind of importance
    assert strength("alora", alora__lam="0.2") == (0.2, None)
    assert strength("alora", method_options__alora__alora__lam="0.2") == (0.2, None)
    assert strength("alora", alora__lam_schedule="cosine") == (None, None)
