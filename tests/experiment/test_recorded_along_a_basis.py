"""A recipe that records along a basis: where the map is looked for, what it depends on, and how the recorded one is saved."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from alora_trainer import ImportanceMap
from alora_trainer.artefact.provenance import map_at_present
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods import METHODS
from alora_trainer.experiment.recipe.contents import CONTENTS, by_content
from alora_trainer.experiment.recipe.plan.devices import DEVICES
from alora_trainer.experiment.recipe.plan.estimate import plan_recipe
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.run.dependencies import recording, training
from alora_trainer.experiment.run.models import load_base, load_tokenizer, with_fresh_adapter
from alora_trainer.experiment.run.record import record_importance
from alora_trainer.importance.origin import ImportanceInfo
from alora_trainer.weights.adapted import adapted_weights
from alora_trainer.weights.parameterization import Parameterization
from tests.dense_metric import random_importance
from tests.tiny_recipe import make_collecting_cheap, write_all

DEVICE = DEVICES["H100"]


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe, with a Kronecker map of its model in the folder `directions` beside it."""
    make_collecting_cheap()
    path = write_all(tmp_path_factory.mktemp("tiny"))
    recipe = load_recipe(path)
    model = with_fresh_adapter(load_base(recipe), recipe)
    weights = adapted_weights(model)
    omega = {w.name: random_importance("kronecker", *w.shape, (4, 3), seed=i) for i, w in enumerate(weights)}
    info = ImportanceInfo(estimator="kronecker", tokens=4)
    map_at_present(model, weights, omega, info).save_pretrained(path.parent / "directions")
    return path


def test_what_is_recorded_along_it_is_saved_in_its_own_format(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file, {"alora.basis": "directions", "alora.xi": "10%"})
    assert recipe.alora.basis == str((recipe_file.parent / "directions").resolve())
    assert (recipe.alora.xi, recipe.map.storage) == ("10%", "log8")
    record_importance(recipe, load_tokenizer(recipe), tmp_path, Parameterization.ADAPTER)
    recorded = ImportanceMap.from_pretrained(str(tmp_path / "map"))
    assert (recorded.kind, recorded.storage, recorded.info.xi_share) == ("ekfac", "ekfac", 0.1)
    assert recorded.info.basis is not None and str(tmp_path) not in recorded.info.basis


def test_it_is_planned_as_large_as_it_is(recipe_file: Path, tmp_path: Path) -> None:
    """The path integral, the recorded map to the byte, and the same bytes where it holds a training."""
    recipe = load_recipe(recipe_file, {"alora.basis": "directions", "methods": "alora,lora"})
    plan = plan_recipe(recipe, DEVICE)
    record_importance(recipe, load_tokenizer(recipe), tmp_path, Parameterization.ADAPTER)
    recorded = ImportanceMap.from_pretrained(str(tmp_path / "map"))
    omegas = [recorded.stored(name).parts["omega"] for name in recorded]
    stages = {stage.name: stage.held.parts for stage in plan.stages}
    assert plan.path_bytes == stages["record"]["w"] == sum(omega.nbytes for omega in omegas)
    assert plan.upload_bytes["importance map"] - plan.upload_bytes["adapter"] == recorded.nbytes
    assert stages["tune alora"]["bases"] == recorded.nbytes and "Omega" not in stages["tune alora"]
    vectors = recorded.nbytes - plan.path_bytes
    assert stages["record"]["directions"] == vectors > 0
    elementwise = plan_recipe(load_recipe(recipe_file), DEVICE)
    assert elementwise.path_bytes == elementwise.memory.omega_bytes("float32") > plan.path_bytes


def test_a_plan_refuses_what_the_recording_would(recipe_file: Path) -> None:
    missing = load_recipe(recipe_file, {"alora.basis": str(recipe_file.parent / "nowhere")})
    with pytest.raises(ALoRAError, match="nowhere"):
        plan_recipe(missing, DEVICE)


def test_it_is_a_part_of_stage_a_and_counts_by_its_content(recipe_file: Path, tmp_path: Path) -> None:
    plain, along = (load_recipe(recipe_file, {"alora.basis": basis}) for basis in ("null", "directions"))
    for depends in (recording, lambda recipe: training(recipe, METHODS["alora"])):
        assert depends(plain).digest != depends(along).digest
        assert depends(along).reason_without("alora.basis") is None
    assert training(plain, METHODS["lora"]).digest == training(along, METHODS["lora"]).digest

    def content(folder: Path) -> object:
        return by_content("alora", {"basis": str(folder)}, CONTENTS)

    there, moved = recipe_file.parent / "directions", tmp_path / "elsewhere"
    shutil.copytree(there, moved)
    assert content(there) == content(moved) != {"basis": str(there)}
    (moved / "importance_config.json").write_text("{}")
    assert content(there) != content(moved)
    assert by_content("alora", {"basis": "owner/name"}, CONTENTS) == {"basis": "owner/name"}


def test_a_hub_id_stays_one(recipe_file: Path) -> None:
    assert load_recipe(recipe_file, {"alora.basis": "tiny-org/directions"}).alora.basis == "tiny-org/directions"
    own = load_recipe(recipe_file, {"method_options.alora.alora.basis": "directions"})
    assert own.for_method(METHODS["alora"]).alora.basis == str((recipe_file.parent / "directions").resolve())
