"""An adapter where a model is meant, a model where an adapter is, and trainings of no step: refused, nothing left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods import get_method
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.run.models import load_base, load_other, load_to_score, load_tokenizer, with_fresh_adapter
from alora_trainer.experiment.run.whole_recipe import evaluate_recipe, record_recipe, run_recipe, tune_recipe
from tests.tiny_recipe import write_all


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def recipe(tiny: Path) -> Callable[..., Recipe]:
    return lambda **overrides: load_recipe(tiny, overrides)


@pytest.fixture(scope="module")
def adapter(tiny: Path) -> Path:
    """An adapter of the tiny model, which names its folder, so that transformers would load the two together."""
    recipe = load_recipe(tiny)
    folder = tiny.parent / "adapter"
    with_fresh_adapter(load_base(recipe), recipe).save_pretrained(str(folder))
    load_tokenizer(recipe).save_pretrained(str(folder))
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    return folder


def test_an_adapter_is_no_base_model(recipe: Any, adapter: Path, tmp_path: Path) -> None:
    own = recipe(**{"model.path": str(adapter)})
    for do in (run_recipe, record_recipe):
        with pytest.raises(
            ALoRAError, match="adapter holds an adapter .adapter_config.json., not a model: .*merge the two"
        ):
            do(own, output_dir=tmp_path / "run")
    with pytest.raises(ALoRAError, match="set model.path to its base model"):
        evaluate_recipe(own, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_adapter_on_the_hub_is_no_base_model(recipe: Any, adapter: Path, hub: Any) -> None:
    HfApi().create_repo("tiny-org/adapter")
    HfApi().upload_folder(repo_id="tiny-org/adapter", folder_path=adapter)
    own = recipe(**{"model.path": "tiny-org/adapter"})
    for load in (load_base, load_tokenizer):
        with pytest.raises(ALoRAError, match="tiny-org/adapter holds an adapter"):
            load(own)
    with pytest.raises(ALoRAError, match="the model at model.path=tiny-org/nothing cannot be loaded"):
        load_base(recipe(**{"model.path": "tiny-org/nothing"}))


def test_eval_does_not_take_an_adapter_for_a_model_or_a_model_for_an_adapter(
    recipe: Any, tiny: Path, adapter: Path, tmp_path: Path
) -> None:
    with pytest.raises(ALoRAError, match="holds an adapter .*, not a model: give it as --adapter"):
        evaluate_recipe(recipe(), output_dir=tmp_path / "run", model=adapter)
    with pytest.raises(ALoRAError, match="holds an adapter .*, not a model: give it as --adapter"):
        load_other(recipe(), str(adapter))
    with pytest.raises(ALoRAError, match="model holds a whole model, not an adapter: give it as --model"):
        evaluate_recipe(recipe(), output_dir=tmp_path / "run", adapter=tiny.parent / "model")
    assert not (tmp_path / "run").exists()


def test_an_adapter_beside_its_models_configuration_is_an_adapter(recipe: Any, adapter: Path, tmp_path: Path) -> None:
    """As some trainers leave it; it goes on the recipe's base model, which divergence is measured from."""
    folder = tmp_path / "both"
    shutil.copytree(adapter, folder)
    shutil.copy(recipe().base / "model" / "config.json", folder)
    model, _ = load_to_score(recipe(), folder, None, torch.device("cpu"))
    assert hasattr(model, "disable_adapter")


_NO_BATCH = {"per_device_train_batch_size": "100", "dataloader_drop_last": "true"}


@pytest.mark.parametrize(
    ("name", "epochs"), [("lora", True), ("lora", False), ("kl_anchor", False), ("ewclora", False), ("ewc_full", False)]
)
def test_a_tuning_of_no_step_is_refused(recipe: Any, tmp_path: Path, name: str, epochs: bool) -> None:
    settings = _NO_BATCH | ({"max_steps": "-1", "num_train_epochs": "1"} if epochs else {})
    own = recipe(**{f"tune.{key}": value for key, value in settings.items()})
    with pytest.raises(ALoRAError, match="its 16 items make no whole batch of 100; lower per_device_train_batch_size"):
        tune_recipe(own, get_method(name), output_dir=tmp_path / "run")
    assert not (tmp_path / "run" / name / "adapter").exists()
    assert not (tmp_path / "run" / name / "training.json").exists()


def test_a_recording_of_no_step_is_refused(recipe: Any, tmp_path: Path) -> None:
    own = recipe(**{f"record.{key}": value for key, value in _NO_BATCH.items()})
    with pytest.raises(ALoRAError, match=r"its \d+ items make no whole batch of 100"):
        record_recipe(own, output_dir=tmp_path / "run")
    assert not (tmp_path / "run" / "record" / "map").exists()


@pytest.mark.parametrize("section", ["record", "tune", "method_options.lora.tune"])
@pytest.mark.parametrize("settings", [{"max_steps": "0"}, {"max_steps": "-1", "num_train_epochs": "0"}])
def test_settings_that_make_no_step_are_refused_as_they_are_read(
    recipe: Any, section: str, settings: dict[str, str]
) -> None:
    with pytest.raises(ALoRAError, match=rf"max_steps={settings['max_steps']} and num_train_epochs=\d make no step"):
        recipe(**{f"{section}.{key}": value for key, value in settings.items()})
