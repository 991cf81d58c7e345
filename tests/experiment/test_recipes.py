"""Every shipped recipe parses, resolves, reads data of the right schema, and is planned on the meta device: none can rot."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from alora_trainer.data import sources
from alora_trainer.data.chat import is_chat
from alora_trainer.data.domain import collator, prepare_domain, tokenize_domain
from alora_trainer.data.general import pack_general_text, write_held_out
from alora_trainer.data.tasks import get_task
from alora_trainer.experiment.methods import METHODS
from alora_trainer.experiment.recipe.plan import estimate
from alora_trainer.experiment.recipe.plan.devices import DEVICES
from alora_trainer.experiment.recipe.plan.estimate import plan_recipe
from alora_trainer.experiment.recipe.plan.models import CONFIGURATIONS, model_config
from alora_trainer.experiment.recipe.plan.report import as_json
from alora_trainer.experiment.recipe.reading import build_recipe, load_recipe
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.weights.parameterization import Parameterization
from tests.data.test_data_chat import TALK, TEMPLATE
from tests.tiny_tokenizer import make_tokenizer

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))
PAPER = [f"{model}-{task}" for model in ("llama-3.2-3b", "gpt-j-6b") for task in ("sciq", "piqa", "medmcqa")]
COUNT = 24
# One made-up item of every data set that a recipe names, by the schema that its repository (or file) has.
SCIQ = {key: f"{key} of the book" for key in ("distractor1", "distractor2", "distractor3", "correct_answer", "support")}
ITEMS: dict[str, dict[str, Any]] = {
    "sciq": SCIQ,
    "piqa": {"goal": "carry water", "sol1": "in a sieve", "sol2": "in a bucket", "label": 1},
    "medmcqa": {"opa": "salt", "opb": "water", "opc": "oxygen", "opd": "neon", "cop": 2},
    "openbookqa": {"choices": ["salt", "water", "oxygen", "neon"], "answer": 1},
    "no_robots": {"messages": TALK},
    "text": {"text": "The people of the village walked to the river in the morning, and the water was cold. " * 4},
}


def fake_items(name: str) -> list[dict[str, Any]]:
    kind = next((kind for kind in ITEMS if kind in name), "text")
    items = []
    for number in range(COUNT):
        item = dict(ITEMS[kind]) | {"question": f"What is number {number} of {name}?", "id": number}
        if kind == "piqa":
            item["goal"] = f"{item['goal']} {number} times ({name})"
        if kind == "text":
            item = {"text": f"{number} {item['text']}"}
        if kind == "no_robots":
            item = {"messages": [{"role": "user", "content": f"{name} {number}"}, *TALK[1:]]}
        items.append(item)
    return items


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of ../shared, with a made-up file for every path that a recipe names, and the same for the Hub."""
    from datasets import Dataset

    def load_hub(settings: Any, *, streaming: bool = False) -> Any:
        return Dataset.from_list(fake_items(f"{settings['hub']}:{settings.get('split', 'train')}"))

    monkeypatch.setattr(sources, "_load_hub", load_hub)
    shared = tmp_path / "shared"
    for path in RECIPES:
        for source in _local_sources(yaml.safe_load(path.read_text())):
            file = shared / source
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                with gzip.open(file, "wt") as stream:
                    stream.writelines(json.dumps(item) + "\n" for item in fake_items(source))
    (shared / "models" / "base-5m").mkdir(parents=True)
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "vocab_size": 320,
    }
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    (shared / "models" / "base-5m" / "config.json").write_text(json.dumps(config))
    yield shared
    shutil.rmtree(shared)


def _local_sources(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [source for item in value.values() for source in _local_sources(item)]
    if isinstance(value, list):
        return [source for item in value for source in _local_sources(item)]
    if isinstance(value, str) and value.startswith("${ALORA_SHARED:-../../shared}/data"):
        return [value.partition("}/")[2]]
    return []


def shallow(recipe: Recipe, config_file: Any = None) -> Any:
    """The model's configuration with two layers, which a plan is as true of."""
    config = model_config(recipe, config_file)
    config.num_hidden_layers = 2
    return config


# The same model and methods as another one's, on other data: no further plan is to be learned from them.
ANOTHER_TASK = {f"{model}-{task}" for model in ("llama-3.2-3b", "gpt-j-6b") for task in ("piqa", "medmcqa")}
ANOTHER_TASK |= {"small-piqa", "small-medmcqa", "small-openbookqa", "study-piqa", "study-sciq-passages"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_dry_run(path: Path, fakes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(path, variables={"ALORA_SHARED": str(fakes)})
    assert recipe.name == path.stem
    resolved = recipe.resolved()
    assert build_recipe(resolved, base=tmp_path / "elsewhere").resolved() == resolved
    # Data of the right schema, through the same functions as in a run.
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    blocks = pack_general_text(recipe.general.train, tokenizer, block_length=16, max_tokens=320, base=recipe.base)
    assert len(blocks) == 20
    held = write_held_out(recipe.general.test, tmp_path / "general", max_bytes=500, base=recipe.base)
    assert all(file.stat().st_size > 100 for file in held.values())
    for each in recipe.each_domain():
        if each.domain.holdout is not None:
            each.domain.holdout["items"] = 4
        chat = tokenizer if is_chat(each.domain.task) else None
        files = prepare_domain(each.domain, base=recipe.base, folder=tmp_path / "domain", tokenizer=chat)
        rows = tokenize_domain(get_task(each.domain.task), files.train, tokenizer, max_length=each.domain.max_length)
        batch = collator(tokenizer)([rows[0], rows[1]])
        assert files.report["test_items"] >= 4 and bool((batch["labels"] != -100).any())
    if path.stem in ANOTHER_TASK:
        return
    # And on the meta device: the adapters fit, a step of every stage runs.
    monkeypatch.setattr(estimate, "model_config", shallow)
    sizes = {}
    for section in ("record", "tune"):
        sizes |= {f"{section}.per_device_train_batch_size": "2"}
    small = load_recipe(path, sizes | {"evaluation.batch_size": "2"}, variables={"ALORA_SHARED": str(fakes)})
    plan = as_json(plan_recipe(small, DEVICES["H100"], length=16))
    trained = [
        method.name
        for method in recipe.methods
        if method.trains and method.parameterization is Parameterization.ADAPTER
    ]
    assert all(any(stage.startswith(f"tune {name}") for stage in plan["stages"]) for name in trained)
    assert all(stage["peak_bytes"] > 0 for stage in plan["stages"].values())
    if path.stem in PAPER:
        assert all(stage["steps"] for name, stage in plan["stages"].items() if name != "evaluate")


def test_the_paper_recipes_have_its_hyperparameters() -> None:
    for name in PAPER:
        recipe = load_recipe(FOLDER / f"{name}.yaml")
        assert recipe.lora == {"r": 8, "lora_alpha": 32, "target_modules": ["q_proj", "v_proj"]}
        for section in (recipe.record, recipe.tune):
            assert section["learning_rate"] == 8e-4 and section["num_train_epochs"] == 5
            assert section["per_device_train_batch_size"] == 20
        assert recipe.alora.record == "paper" and recipe.alora.meant_for(None).layer_weights == "l2"
        assert recipe.fisher.samples == 20000 and recipe.fisher.batch_size == 8
        assert recipe.model.path in CONFIGURATIONS
        assert [m.name for m in recipe.methods] == ["base", "lora", "lora_ab", "rslora", "ewclora_batch", "alora"]


def test_one_recipe_has_every_method() -> None:
    assert [method.name for method in load_recipe(FOLDER / "small-methods.yaml").methods] == list(METHODS)


def test_each_key_of_the_large_recipes_is_explained_somewhere() -> None:
    for name in PAPER:
        comments = [line for line in (FOLDER / f"{name}.yaml").read_text().splitlines() if "#" in line]
        assert len(comments) >= 20
