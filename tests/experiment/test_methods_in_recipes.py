"""The methods in recipes: options of their own, and all of them through one recipe."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alora_trainer.artefact.importance_map import ImportanceMap
from alora_trainer.basics.scores import GeneralScore, Score, TaskScore
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods import METHODS, get_method
from alora_trainer.experiment.methods.replay import ReplayOptions
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.run.dependencies import result
from alora_trainer.experiment.run.run import Run
from alora_trainer.experiment.run.whole_recipe import run_recipe
from tests.tiny_recipe import make_collecting_cheap, write_all


def test_options_over_the_recipe(tmp_path: Path) -> None:
    path = write_all(tmp_path)
    recipe = load_recipe(
        path, {"method_options.alora_no_layer.alora.lam": "7", "method_options.rslora.tune.max_steps": "9"}
    )
    special = recipe.for_method(get_method("alora_no_layer"))
    assert special.alora.lam == 7 and special.alora.layer_weights == "none"
    assert recipe.for_method(get_method("alora")).alora == recipe.alora
    rslora = recipe.for_method(get_method("rslora"))
    assert rslora.tune["max_steps"] == 9 and rslora.lora["use_rslora"] is True and rslora.lora["r"] == 2
    assert (
        load_recipe(path, {"method_options.replay.fraction": "0.05"}).options(get_method("replay")).own.fraction == 0.05
    )
    assert recipe.options(get_method("replay")).own == ReplayOptions()
    for override, message in (
        ({"method_options.replay.fractoin": "1"}, "unknown key method_options.replay.fractoin: did you mean"),
        ({"method_options.replay.fraction": "2"}, "method_options.replay.fraction=2.0 must lie between 0 and 1"),
        (
            {"method_options.alroa.alora.lam": "2"},
            "unknown key method_options.alroa: did you mean method_options.alora?",
        ),
        ({"method_options.alora.alora.lamb": "2"}, "unknown key method_options.alora.alora.lamb: did you mean"),
        ({"method_options.alora.lora.r": "x"}, "method_options.alora.lora.r='x' must be a whole number"),
        ({"method_options.alora.record.max_steps": "2"}, "alora has no recording of its own"),
        (
            {"method_options.si_full.record.max_stps": "2"},
            "unknown key method_options.si_full.record.max_stps: did you",
        ),
        ({"fisher.samples": "0"}, "fisher.samples=0 must be at least 1"),
        ({"fisher.storage": "float8"}, "storage='float8' is unknown"),
        ({"model.quantization": "nf3"}, "model.quantization='nf3' is unknown: use one of nf4, int8"),
    ):
        with pytest.raises(ALoRAError, match=message.replace("?", r"\?")):
            load_recipe(path, override)


def test_the_recording_of_the_whole_model_has_options_of_its_own(tmp_path: Path) -> None:
    path = write_all(tmp_path)
    recipe = load_recipe(path, {"method_options.si_full.record.max_steps": "1"})
    both = [
        recipe.training_arguments("record", tmp_path),
        recipe.for_own_recording(get_method("si_full")).training_arguments("record", tmp_path),
    ]
    assert both[0].max_steps > 1 and both[1].max_steps == 1 and both[0].learning_rate == both[1].learning_rate
    settings = {}
    for name, one in (("as the recipe", load_recipe(path, {})), ("of its own", recipe)):
        settings[name] = [result(one, get_method(method)).settings for method in ("si_full", "alora")]
    assert settings["as the recipe"][0] != settings["of its own"][0]
    assert settings["as the recipe"][1] == settings["of its own"][1]


def test_a_second_method_may_record_by_itself(tmp_path: Path) -> None:
    path = write_all(tmp_path)
    METHODS.register("si_again", replace(METHODS["si_full"], name="si_again"))
    try:
        recipe = load_recipe(path, {"method_options.si_again.record.learning_rate": "0.5"})
        rates = [recipe.for_own_recording(METHODS[name]).record["learning_rate"] for name in ("si_full", "si_again")]
        assert rates == [recipe.record["learning_rate"], 0.5]
        run = Run(recipe, tmp_path / "run")
        folders = {run.map_folder(METHODS[name]) for name in ("si_full", "si_again", "alora")}
        assert len(folders) == 3  # and neither finds what the other recorded with other settings
    finally:
        METHODS.remove("si_again")


# ---- all of them through one recipe ----


@pytest.fixture(scope="module")
def all_methods(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    make_collecting_cheap()
    recipe = write_all(tmp_path_factory.mktemp("all"))
    settings = {"methods": ",".join(METHODS), "fisher.batch_size": "3", "method_options.osf.effective_rank": "0.75"}
    settings["method_options.oplora.k"] = "3"
    settings["curvature.weights"] = "all"  # the MLP's, too, which the recipe's LoRA does not adapt
    for name in ("self_replay", "self_kl"):
        settings |= {f"method_options.{name}.tokens": "200", f"method_options.{name}.length": "24"}
    settings |= {
        "tune.max_steps": "2",
        "record.max_steps": "3",
        "tune.save_strategy": "no",
        "record.save_strategy": "no",
    }
    folder = recipe.parent / "run"

    def evaluate(model: Any, tokenizer: Any, **rest: Any) -> Score:
        adapter = [p.double().abs().sum() for name, p in model.named_parameters() if "lora_" in name or "osf_" in name]
        adapter = adapter or [p.double().abs().sum() for p in model.parameters()]
        return Score(GeneralScore(token_perplexity=1 + float(sum(adapter)), subsets={}), {"sums": TaskScore(acc=0.5)})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("alora_trainer.experiment.run.evaluate.evaluate_model", evaluate)
        run_recipe(load_recipe(recipe, settings), output_dir=folder)
    return recipe, folder


def test_every_method_is_in_one_report(all_methods: tuple[Path, Path]) -> None:
    _, folder = all_methods
    entries = json.loads((folder / "results.json").read_text())["methods"]
    assert list(entries) == list(METHODS)
    sizes = {name: entry["general"]["token_perplexity"] for name, entry in entries.items()}
    # Two steps move every one of them, and no two of them to the same place, but that there is no intruder yet to be reduced.
    assert sizes.pop("reduce_intruders") == sizes["lora"]
    assert len(set(sizes.values())) == len(sizes), sizes
    held = {name for name, method in METHODS.items() if method.importance is not None} | {"lora_ab"}
    assert {name for name, entry in entries.items() if "record" in entry} == held
    assert entries["ewclora"]["record"]["samples"] == entries["ewclora_batch"]["record"]["samples"] > 3


def test_the_fisher_maps_are_of_the_base(all_methods: tuple[Path, Path]) -> None:
    recipe, folder = all_methods
    maps = {kind: ImportanceMap.from_pretrained(folder / kind / "map") for kind in ("fisher", "fisher_batch")}
    for kind, importance in maps.items():
        assert importance.info.estimator == kind and importance.info.tokens > 0
        assert all(not reference.b.any() for reference in importance.reference.values())
    name = next(iter(maps["fisher"]))
    assert not torch.allclose(maps["fisher"][name], maps["fisher_batch"][name], rtol=0.1)
    every = load_recipe(
        recipe, {"methods": "ewclora", "fisher.weights": "all", "fisher.storage": "log8", "tune.max_steps": "2"}
    )
    run_recipe_quietly(every, folder.parent / "every")
    whole = ImportanceMap.from_pretrained(folder.parent / "every" / "fisher" / "map")
    assert whole.storage == "log8" and len(whole) == 14 and set(maps["fisher"]) < set(whole)


def run_recipe_quietly(recipe: Any, folder: Path) -> None:
    from alora_trainer.experiment.run.whole_recipe import tune_recipe

    tune_recipe(recipe, get_method("ewclora"), output_dir=folder)


def test_full_tuning_holds_all_parameters_from_where_it_starts(all_methods: tuple[Path, Path]) -> None:
    from transformers import AutoModelForCausalLM

    recipe, folder = all_methods
    base = dict(AutoModelForCausalLM.from_pretrained(recipe.parent / "model").named_parameters())
    recorded, fisher = (
        ImportanceMap.from_pretrained(folder / part / "map") for part in ("record_si_full", "fisher_full")
    )
    start, of_base = (
        {name: held.reference[name.removesuffix(".weight")].weight.view(p.shape) for name, p in base.items()}
        for held in (recorded, fisher)
    )
    end = dict(AutoModelForCausalLM.from_pretrained(folder / "si_full" / "adapter").named_parameters())
    norms = json.loads((folder / "results.json").read_text())["methods"]["si_full"]["layer_norms"]
    assert set(norms) == set(recorded)  # and not those of the recording that the others share
    assert all(torch.equal(of_base[name], p) for name, p in base.items())
    assert all(not torch.equal(start[name], p) and not torch.equal(start[name], end[name]) for name, p in base.items())
    for held in (recorded, fisher):
        assert len(held) == len(base) and all(held.total([name]) > 0 for name in held) and held.info.data["sources"]
    assert json.loads((folder / "si_full" / "adapter" / "importance_tuning.json").read_text())["map"]["estimator"]


def test_only_the_mlp_is_moved_by_mlp_only(all_methods: tuple[Path, Path]) -> None:
    _, folder = all_methods
    names = load_file(folder / "mlp_only" / "adapter" / "adapter_model.safetensors")
    assert names and all(".mlp." in name for name in names)
