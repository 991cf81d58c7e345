"""What a result depends on: every single setting of a recipe either changes it, or the package says why not."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from alora_trainer.data.domain import DomainConfig
from alora_trainer.data.general import GeneralConfig
from alora_trainer.errors import ALoRAError
from alora_trainer.evaluation.config import EvaluationConfig
from alora_trainer.experiment.methods import METHODS, Method
from alora_trainer.experiment.recipe.map_section import RecordedMapConfig
from alora_trainer.experiment.recipe.model_section import ModelConfig
from alora_trainer.experiment.recipe.reading import build_recipe, load_recipe
from alora_trainer.experiment.recipe.recipe import KEYS, Recipe
from alora_trainer.experiment.run.dependencies import Dependence, recording, result, shared
from alora_trainer.experiment.run.overcautious import OVERCAUTIOUS
from alora_trainer.importance.recording.curvature_config import CurvatureConfig
from alora_trainer.importance.recording.fisher import FisherConfig
from alora_trainer.trainer.config import ALoRAConfig
from tests.tiny_recipe import SETTINGS

RECIPES = Path(__file__).parents[2] / "recipes"

# Another valid value of every setting of the recipe's sections that are dataclasses of ours.
OURS: dict[type, dict[str, Any]] = {
    ModelConfig: {"path": "gpt2", "revision": "v2", "dtype": "bfloat16", "quantization": "int8"},
    GeneralConfig: {
        "train": "other.jsonl",
        "test": {"words": "other.jsonl"},
        "block_length": 8,
        "train_tokens": 999,
        "test_bytes": 99,
        "streaming": True,
        "probe": "another.jsonl",
        "probe_tokens": 4096,
        "self_text": {"tokens": 7000},
    },
    DomainConfig: {
        "task": {"name": "sums", "prompt": "Add {question} is", "choices": "choices", "answer": "answer"},
        "train": "other.jsonl",
        "test": "other.jsonl",
        "source": "other.jsonl",
        "holdout": {"by": "question", "items": 3},
        "train_items": 5,
        "test_items": 5,
        "max_length": 31,
        "loss_on": "all",
        "too_long": "drop",
        "unfit": "drop",
    },
    ALoRAConfig: {
        "record": "path",
        "full_parameters": True,
        "xi": "10%",
        "basis": "maps/directions",
        "omega_device": "cpu",
        "fold_every": 2,
        "record_tokens": 99,
        "storage": "bfloat16",
        "storage_device": "cpu",
        "lam": 0.7,
        "lam_schedule": "linear",
        "lam_end_factor": 0.5,
        "application": "decoupled",
        "budget": 0.02,
        "probe_steps": 3,
        "start": "merged",
        "anchor": "base",
        "init_adapter": "contrastive",
        "init_items": 99,
        "init_damping": 0.2,
        "init_memory": "cpu",
        "freeze_a": True,
        "log_drift": True,
        "missing": "free",
        "layer_weights": "none",
        "normalize": False,
        "allow_other_revision": True,
        "backend": "blocked",
    },
    RecordedMapConfig: {"storage": "float32"},
    FisherConfig: {"samples": 3, "batch_size": 3, "weights": "all", "location": "cpu", "storage": "log8"},
    CurvatureConfig: {
        "tokens": 99,
        "batch_size": 3,
        "labels": "text",
        "draws": 2,
        "keep": 3,
        "share": 0.5,
        "weights": "adapted",
        "location": "cpu",
        "parts": 2,
        "storage": "bfloat16",
    },
    EvaluationConfig: {
        "batch_size": 3,
        "max_length": 33,
        "limit": 3,
        "bootstrap_iters": 11,
        "document_tokens": 17,
        "kl_tokens": 99,
        "general_tasks": ["hellaswag"],
        "task_folder": "tasks",
        "curve_steps": 2,
        "curve_blocks": 3,
        "curve_items": 3,
        "scales": [0.5],
    },
}
SECTION = {
    ModelConfig: "model",
    GeneralConfig: "general",
    DomainConfig: "domain",
    ALoRAConfig: "alora",
    RecordedMapConfig: "map",
    FisherConfig: "fisher",
    CurvatureConfig: "curvature",
    EvaluationConfig: "evaluation",
}
# Of PEFT's and the Trainer's many, those that the package's own recipes set, and a few besides.
LORA = {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj"], "lora_dropout": 0.1, "use_rslora": True}
TRAINER = {
    "learning_rate": 0.003,
    "max_steps": 3,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 2,
    "gradient_checkpointing": True,
    "optim": "sgd",
    "weight_decay": 0.1,
    "bf16": True,
    "disable_tqdm": False,
    "save_steps": 2,
    "logging_steps": 3,
}
OPTIONS = {"fraction": 0.7, "weight": 0.3, "temperature": 2.0, "decay": 0.5, "consistency": 0.3, "result": "trained"}
OPTIONS |= {"solution": "zero", "damping": 0.1, "samples": 3, "effective_rank": 0.3}
OPTIONS |= {"equation": "paper", "gamma": 4, "rho": 1.5, "beta": 0.3, "k": 5, "strength": 0.3, "share": 0.2}
OPTIONS |= {"alpha": 0.3, "answers": True, "kl": 0.3, "space": "factors", "prompts": ["Once"], "top_p": 0.5}
OPTIONS |= {"reference": 2.0, "most": 3.0, "top": 3, "threshold": 0.3, "kept": 0.3, "curvature": "kronecker"}
OPTIONS |= {"spread": True, "equal_work": True, "tokens": 999, "length": 99, "sampling_temperature": 0.5}


def dotted(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{key}": value for key, value in values.items()}


# What a single setting is changed over, and which sections are looked at there: on some of these alone does a setting matter,
# or can it be set.
GROUNDS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "as it is": ({}, KEYS),
    "a new adapter over the merged base": ({"alora.start": "merged"}, ("lora", "fresh_lora", "alora")),
    "a new adapter over the bare base": (
        {"alora.start": "bare"},
        ("lora", "fresh_lora", "alora"),
    ),
    "with a curve": ({"evaluation.curve_steps": 1}, ("evaluation", "general", "domain")),
    "on a budget": ({"alora.budget": 0.01, "alora.lam": None, "general.train_tokens": 500}, ("general", "alora")),
    "on text of the model's own": ({"general.train": "self", "alora.budget": 0.01, "alora.lam": None}, ("general",)),
    "from one source": (
        {
            "domain.train": None,
            "domain.test": None,
            "domain.source": "sums.jsonl",
            "domain.holdout": {"by": "question", "items": 4},
        },
        ("domain",),
    ),
    "with tasks of one's own": (
        {"evaluation.general_tasks": ["mine"], "evaluation.task_folder": "folder"},
        ("evaluation",),
    ),
}
# One of each kind, where not all are looked at.
KINDS = ("base", "lora", "lora_ab", "ewclora", "kfac", "alora", "replay", "si_full", "ewc_full")


def every_change() -> dict[str, Any]:
    """All single settings by dotted name, each with another value."""
    changes: dict[str, Any] = {"seed": 5, "name": "other", "output_dir": "elsewhere", "methods": ["base"]}
    changes["importance"] = "kronecker"
    for kind, values in OURS.items():
        changes |= dotted(SECTION[kind], values)
    changes |= dotted("lora", LORA) | dotted("fresh_lora", LORA)
    return changes | dotted("record", TRAINER) | dotted("tune", TRAINER)


def written(several: bool, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The tiny recipe with settings by dotted name; those of `domain` are of the second one, if there are several."""
    # Curvature of all layers, since one method adapts others than the recipe's LoRA does.
    recipe = copy.deepcopy(SETTINGS) | {"model": {"path": "some/model"}, "curvature": {"weights": "all"}}
    if several:
        first = recipe.pop("domain")
        recipe["domains"] = [first, copy.deepcopy(first) | {"task": first["task"] | {"name": "more"}}]
    for name, value in settings.items():
        section, _, key = name.partition(".")
        target: Any = recipe
        if several and section == "domain":
            target = recipe["domains"][1]
        elif section == "method_options":
            *path, key = name.split(".")
            for one in path:
                target = target.setdefault(one, {})
        elif key:
            target = recipe.setdefault(section, {})
        target[key or section] = value
    return recipe


@cache
def grounds() -> dict[tuple[str, bool], Recipe]:
    return {(name, many): made(many, ground) for name, (ground, _) in GROUNDS.items() for many in (False, True)}


def made(several: bool, settings: Mapping[str, Any]) -> Recipe:
    return build_recipe(written(several, settings), base="/nowhere", variables={})


def methods(several: bool, ground: str = "as it is") -> list[Method]:
    names = KINDS if ground != "as it is" else tuple(METHODS)
    return [METHODS[name] for name in names if not several or METHODS[name].learns_several_domains]


@cache
def on_ground(ground: str, several: bool, name: str) -> Dependence | None:
    return dependence(grounds()[ground, several], METHODS[name])


def dependence(recipe: Recipe, method: Method) -> Dependence | None:
    """None where the recipe does not go with the method: nothing is trained by it then."""
    try:
        return result(recipe, method)
    except ALoRAError:
        return None


def compare(one: Dependence | None, other: Dependence | None, setting: str) -> list[str]:
    """What is wrong: the result changes and there is a reason why it cannot, or the other way round."""
    if one is None or other is None:
        return []
    reason = one.reason_without(setting) if one.reason_without(setting) == other.reason_without(setting) else None
    if (one.digest == other.digest) == (reason is not None):
        return []
    return [f"{setting}: " + (f"changes it, in spite of: {reason}" if reason else "is forgotten")]


def test_every_setting_of_ours_is_among_the_changes() -> None:
    for kind, values in OURS.items():
        assert set(values) == {item.name for item in dataclasses.fields(kind)}, kind
    covered = {name.partition(".")[0] for name in every_change()}
    assert covered | {"domains", "method_options"} == set(KEYS)
    for method in METHODS.values():
        own = METHODS[method.name]
        options = grounds()["as it is", False].options(own).own
        assert options is None or {item.name for item in dataclasses.fields(options)} <= set(OPTIONS)


def test_every_key_of_the_shipped_recipes_is_among_the_changes() -> None:
    changes = set(every_change())
    for path in sorted(RECIPES.glob("*.yaml")):
        recipe = yaml.safe_load(path.read_text())
        for section in ("lora", "fresh_lora", "record", "tune"):
            assert {f"{section}.{key}" for key in recipe.get(section) or {}} <= changes, path


@pytest.mark.parametrize("several", [False, True], ids=["one domain", "several domains"])
@pytest.mark.parametrize("ground", GROUNDS)
def test_each_setting_alone_changes_the_result_or_has_a_reason(ground: str, several: bool) -> None:
    settings, sections = GROUNDS[ground]
    unchanged, wrong, tried = grounds()[ground, several].resolved(), [], 0
    for setting, value in every_change().items():
        if setting.partition(".")[0] not in sections:
            continue
        try:
            after = made(several, settings | {setting: value})
        except ALoRAError:
            continue  # not with these others; on another of the grounds it is
        if after.resolved() == unchanged and setting not in ("output_dir", "methods"):
            continue
        tried += 1
        name = setting.replace("domain.", "domains.1.") if several else setting
        for method in methods(several, ground):
            wrong += compare(on_ground(ground, several, method.name), dependence(after, method), name)
    assert not wrong, "\n".join(wrong)
    assert tried > len(sections)


def test_each_setting_can_be_changed_on_some_ground() -> None:
    left = set(every_change())
    for ground, sections in GROUNDS.values():
        for setting in [one for one in left if one.partition(".")[0] in sections]:
            try:
                made(False, ground | {setting: every_change()[setting]})
            except ALoRAError:
                continue
            left.discard(setting)
    assert not left


@pytest.mark.parametrize("several", [False, True], ids=["one domain", "several domains"])
@pytest.mark.parametrize("ground", ["as it is", "a new adapter over the merged base"])
def test_each_option_of_a_method_changes_its_result_or_has_a_reason(ground: str, several: bool) -> None:
    before, wrong = grounds()[ground, several], []
    for method in methods(several, ground):
        options = before.options(method).own
        own = {item.name: OPTIONS[item.name] for item in dataclasses.fields(options)} if options is not None else {}
        held = OURS[ALoRAConfig] if method.penalty and ground == "as it is" else {"lam": 0.7, "xi": 0.1}
        changes = own | dotted("alora", held) | dotted("lora", LORA) | {"tune.learning_rate": 0.003}
        changes |= {"record.learning_rate": 0.003} if method.records_alone else {}
        for key, value in changes.items():
            setting = f"method_options.{method.name}.{key}"
            try:
                after = made(several, GROUNDS[ground][0] | {setting: value})
                one, other = (recipe.for_method(method) for recipe in (before, after))
            except ALoRAError:
                continue
            same = (one.lora, one.tune, one.alora) == (other.lora, other.tune, other.alora)
            if same and key not in own and not key.startswith("record."):
                continue  # the method has that value anyway
            wrong += compare(on_ground(ground, several, method.name), dependence(after, method), setting)
    assert not wrong, "\n".join(wrong)


def test_an_option_of_one_method_is_of_no_matter_to_the_others() -> None:
    after = made(False, {f"method_options.{name}.tune.learning_rate": 0.5 for name in ("alora", "replay")})
    for method in METHODS.values():
        one, other = on_ground("as it is", False, method.name), dependence(after, method)
        assert one is not None and other is not None
        assert (one.digest == other.digest) == (method.name not in ("alora", "replay"))


def test_overcautious_settings_do_change_a_result() -> None:
    for setting in OVERCAUTIOUS:
        name, value = setting, every_change()[setting]
        before, after = grounds()["as it is", False], made(False, {name: value})
        assert any(result(before, method).digest != result(after, method).digest for method in METHODS.values())


def test_the_tiny_recipe_by_hand() -> None:
    """A few of the answers, so that the tests above cannot all be right for the wrong cause."""
    recipe = grounds()["as it is", False]
    alora, lora = result(recipe, METHODS["alora"]), result(recipe, METHODS["lora"])
    assert "has a value of its own" in str(result(recipe, METHODS["l2"]).reason_without("alora.layer_weights"))
    for setting in ("alora.lam", "record.learning_rate", "general.train", "domain.train", "evaluation.limit", "seed"):
        assert alora.reason_without(setting) is None
    assert lora.reason_without("alora.lam") == (
        "what is evaluated, and on what, was made before; the files are written before all else; nothing is held"
    )
    assert lora.reason_without("method_options.lora.tune.max_steps") is None
    assert lora.reason_without("method_options.alora.tune.max_steps") is not None
    assert alora.reason_without("method_options.alora.lora.r") is not None
    fresh = result(grounds()["a new adapter over the merged base", False], METHODS["alora"])
    assert fresh.reason_without("method_options.alora.lora.r") is None
    assert result(recipe, METHODS["si_full"]).reason_without("method_options.si_full.record.max_steps") is None


def test_what_methods_share() -> None:
    recipe = grounds()["as it is", False]
    assert shared(recipe)["record"] == recording(recipe).settings == recording(recipe, METHODS["alora"]).settings
    assert recording(recipe, METHODS["si_full"]).settings != recording(recipe).settings
    assert shared(made(False, {"alora.lam": 3.0})) == shared(recipe)
    assert shared(made(False, {"alora.xi": 3.0})) != shared(recipe)


def test_a_given_map_takes_the_place_of_the_recording() -> None:
    recipe, alora = grounds()["as it is", False], METHODS["alora"]
    other = made(False, {"record.learning_rate": 0.5})
    assert result(recipe, alora, "maps/one").digest == result(other, alora, "maps/one").digest
    assert result(recipe, alora, "maps/one").digest != result(recipe, alora, "maps/two").digest
    assert result(recipe, alora, "maps/one").reason_without("record.learning_rate") is not None
    assert result(recipe, METHODS["si_full"], "maps/one").digest == result(recipe, METHODS["si_full"]).digest


def test_conversations_are_written_by_the_model_s_template() -> None:
    talk = {"domain.task": {"name": "talk", "messages": "messages"}}
    before, after = made(False, talk), made(False, talk | {"model.path": "other/model"})
    assert result(before, METHODS["base"]).settings["data"] != result(after, METHODS["base"]).settings["data"]


def test_the_continual_recipe_is_a_chain() -> None:
    recipe = load_recipe(RECIPES / "continual.yaml", {"model.path": "some/model"})
    for method in recipe.methods:
        steps = list(result(recipe, method).steps)
        assert len(steps) > len(recipe.domains)
