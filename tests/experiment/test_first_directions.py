"""Methods that choose where a new adapter starts, through recipes: once, on the first domain, by a map made or given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods import get_method
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.run.training_recipe import as_trained
from alora_trainer.experiment.run.whole_recipe import record_recipe, tune_recipe
from tests.tiny_recipe import write_all

FEW = {"curvature.tokens": "100", "curvature.keep": "4", "tune.max_steps": "2", "tune.save_strategy": "no"}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("directions"))


@pytest.fixture(scope="module")
def recipe(path: Path) -> Callable[..., Recipe]:
    return lambda **settings: load_recipe(path, FEW | settings)


@pytest.fixture(scope="module")
def maps(recipe: Callable[..., Recipe]) -> dict[str, Path]:
    kinds = ("kronecker", "covariance")
    made = {kind: recipe(importance=kind) for kind in kinds}
    return {kind: record_recipe(one, output_dir=one.base / f"map-{kind}") for kind, one in made.items()}


def factors(folder: Path, side: str) -> torch.Tensor:
    tensors = load_file(folder / "adapter_model.safetensors")
    return torch.cat([tensor.flatten() for name, tensor in sorted(tensors.items()) if f"lora_{side}" in name])


def test_where_each_method_starts_and_whether_a_moves(recipe: Callable[..., Recipe], maps: dict[str, Path]) -> None:
    found = {}
    # By the map of a kind that the method names; what is held a little less counts little in two steps.
    for name, kind in (
        ("lora", None), ("lora_frozen", None), ("lora_natural", "kronecker"), ("lora_natural_frozen", "kronecker"),
        ("kfac_natural", "kronecker"), ("lora_contrastive_frozen", "covariance"),
    ):  # fmt: skip
        given = None if kind is None else maps[kind]
        one = recipe(**{"alora.lam": "50"})
        folder = tune_recipe(one, get_method(name), output_dir=one.base / "tuned" / name, importance=given)
        found[name] = factors(folder, "A"), factors(folder, "B")
        card = (folder / "README.md").read_text() if kind else ""
        assert ("initialization_kind" in card) == (kind is not None)
    a = {name: one for name, (one, _) in found.items()}
    assert not torch.equal(a["lora"], a["lora_frozen"]) and not torch.equal(a["lora_natural"], a["lora_natural_frozen"])
    assert torch.allclose(a["lora"], a["lora_frozen"], atol=0.05)  # it moves by two steps
    assert not torch.allclose(a["lora"], a["lora_natural"], atol=0.05)
    assert torch.allclose(a["lora_natural"], a["kfac_natural"], atol=0.05)
    assert not torch.allclose(a["lora_contrastive_frozen"], a["lora_natural_frozen"], atol=0.05)
    b = {name: one for name, (_, one) in found.items()}
    assert float(b["kfac_natural"].norm()) < 0.9 * float(b["lora_natural"].norm())


def test_a_stopped_training_goes_on_from_the_same_start(
    recipe: Callable[..., Recipe], maps: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"tune.max_steps": "4", "tune.save_strategy": "steps", "tune.save_steps": "2"}
    one, method = recipe(**settings), get_method("lora_natural_frozen")
    whole = tune_recipe(one, method, output_dir=one.base / "whole", importance=maps["kronecker"])
    folder = one.base / "stopped"

    def stop(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("alora_trainer.trainer.initializing.Initializing.save", stop)
        with pytest.raises(KeyboardInterrupt):
            tune_recipe(one, method, output_dir=folder, importance=maps["kronecker"])
    # The checkpoint was not finished, so that it is begun anew, and comes to the same end.
    again = tune_recipe(one, method, output_dir=folder, importance=maps["kronecker"])
    for side in "AB":
        assert torch.equal(factors(whole, side), factors(again, side))


def test_a_later_domain_goes_on_with_what_was_learned(path: Path, recipe: Callable[..., Recipe]) -> None:
    settings = yaml.safe_load(path.read_text())
    domain = settings.pop("domain")
    settings["domains"] = [domain | {"task": domain["task"] | {"name": f"sums{number}"}} for number in range(2)]
    several = path.with_name("several.yaml")
    several.write_text(yaml.safe_dump(settings))
    one = load_recipe(several, FEW)
    for name in ("kfac_natural", "lora_natural_frozen"):
        method = get_method(name)
        first, later = as_trained(one, method).alora, as_trained(one, method, later=True).alora
        assert (first.init_adapter, first.start) == ("natural_gradient", "bare")
        assert (later.init_adapter, later.start) == ("default", "recorded")
        assert later.freeze_a == first.freeze_a


def test_settings_of_a_recipe(recipe: Callable[..., Recipe], maps: dict[str, Path]) -> None:
    """Of `alora`, for every method that a new adapter is held with; element-wise importance cannot say where to start."""
    one = recipe(**{"alora.init_adapter": "contrastive", "alora.init_items": "3", "alora.freeze_a": "true"})
    folder = tune_recipe(one, get_method("kfac"), output_dir=one.base / "kfac", importance=maps["kronecker"])
    tuning = json.loads((folder / "importance_tuning.json").read_text())
    assert tuning["training"]["initialization_items"] == 3 and tuning["protection"]["freeze_a"] is True
    with pytest.raises(ALoRAError, match="is of its elements"):
        tune_recipe(one, get_method("ewclora"), output_dir=one.base / "ewclora")
    with pytest.raises(ALoRAError, match="is for a fresh adapter"):
        tune_recipe(one, get_method("alora"), output_dir=one.base / "alora")
    # Nothing was measured or recorded for what is refused.
    assert not (one.base / "ewclora").exists() and not (one.base / "alora").exists()
