"""Recipes whose protected training starts afresh, keeps a budget, or watches a probe, from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from alora_trainer.data.general import pack_general_text
from alora_trainer.data.sources import load_texts
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.run.models import load_base, load_tokenizer, with_saved_adapter
from alora_trainer.experiment.run.whole_recipe import run_recipe
from tests import tiny_recipe

FRESH = {
    "methods": "alora",
    "fresh_lora": "{r: 3, target_modules: [q_proj, o_proj]}",
    "alora.missing": "uniform",
}


@pytest.fixture(scope="module")
def recipe_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny_recipe.make_collecting_cheap()
    return tiny_recipe.write_all(tmp_path_factory.mktemp("tiny"))


def training(folder: Path) -> dict:
    return json.loads((folder / "alora" / "training.json").read_text())["train"]


@pytest.mark.parametrize("start_from", ["merged", "bare"])
def test_a_fresh_adapter_comes_out_as_one_of_the_bare_base(recipe_path, tmp_path, start_from):
    """The evaluated adapter is an ordinary one: on the bare base it gives what training on the merged base ended with."""
    recipe = load_recipe(recipe_path, FRESH | {"alora.start": start_from, "alora.application": "decoupled"})
    results = run_recipe(recipe, output_dir=tmp_path)
    assert (results.methods["alora"].general.token_perplexity or 0) > 1
    config = json.loads((tmp_path / "alora" / "adapter" / "adapter_config.json").read_text())
    targets = {name.rpartition(".")[2] for name in config["target_modules"]}
    assert targets == ({"q_proj", "v_proj", "o_proj"} if start_from == "merged" else {"q_proj", "o_proj"})
    told = json.loads((tmp_path / "alora" / "adapter" / "importance_tuning.json").read_text())
    assert (told["protection"]["start"], told["over_merged"]) == (start_from, False) and told["data"]["sources"]
    card = (tmp_path / "alora" / "adapter" / "README.md").read_text()
    assert "tuned while its general ability was held" in card and "where the training started" not in card
    ids = torch.arange(2, 30)[None]
    with torch.no_grad():
        alone = with_saved_adapter(load_base(recipe), tmp_path / "alora" / "adapter", trainable=False)(ids).logits
        bare = load_base(recipe)(ids).logits
        recorded = with_saved_adapter(load_base(recipe), tmp_path / "record" / "map", trainable=False)(ids).logits
    start = recorded if start_from == "merged" else bare
    other = bare if start_from == "merged" else recorded
    assert not torch.allclose(alone, start, atol=1e-6)
    assert float((alone - start).norm()) != pytest.approx(float((alone - other).norm()), rel=1e-6)


def test_a_budget_in_a_recipe(recipe_path, tmp_path):
    """The probe is what stage A left of the training text, and its history is kept with the training."""
    settings = {
        "methods": "lora_ab,alora",
        "general.train_tokens": "160",
        "general.probe_tokens": "64",
        "alora.budget": "0.001",
        "alora.application": "decoupled",
        "alora.probe_steps": "2",
        "tune.max_steps": "12",
        "tune.learning_rate": "0.05",
    }
    recipe = load_recipe(recipe_path, settings)
    run_recipe(recipe, output_dir=tmp_path)
    history = training(tmp_path)["probe"]
    assert [entry["step"] for entry in history] == [2, 4, 6, 8, 10, 12]
    assert history[-1]["probe_rise"] + 1.28 * history[-1]["probe_rise_error"] <= 0.001 + 1e-9
    assert "final_pull" in history[-1]
    again = run_recipe(load_recipe(recipe_path, settings), output_dir=tmp_path)
    assert set(again.methods) == {"lora_ab", "alora"}


def test_the_probe_is_text_that_was_not_recorded_on(recipe_path):
    recipe = load_recipe(recipe_path)
    tokenizer = load_tokenizer(recipe)
    common = {"block_length": 8, "seed": 3, "base": recipe.base}
    recorded = pack_general_text(recipe.general.train, tokenizer, max_tokens=200, **common)
    left = pack_general_text(recipe.general.train, tokenizer, max_tokens=120, after=200, **common)
    everything = pack_general_text(recipe.general.train, tokenizer, **common)
    tokens = [token for row in everything["input_ids"] for token in row]
    read = [token for row in recorded["input_ids"] for token in row]
    probe = [token for row in left["input_ids"] for token in row]
    assert len(read) == 200 and len(probe) == 120
    starts = [i for i in range(len(tokens)) if tokens[i : i + len(probe)] == probe]
    assert starts and min(starts) >= 200 and tokens[:200] == read


def test_the_probe_takes_a_piece_of_many_documents(recipe_path):
    """Every block is a run of tokens of one document, and no two are of the same."""
    recipe = load_recipe(recipe_path)
    tokenizer = load_tokenizer(recipe)
    texts = load_texts(recipe.general.train["words_train"], base=recipe.base)
    documents = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
    assert min(map(len, documents)) > 8
    common = {"block_length": 8, "seed": 3, "base": recipe.base}
    pieces = pack_general_text(recipe.general.train, tokenizer, max_tokens=8 * len(documents), excerpt=8, **common)
    homes = []
    for piece in pieces["input_ids"]:
        found = [
            n for n, ids in enumerate(documents) if any(ids[i : i + 8] == list(piece) for i in range(len(ids) - 7))
        ]
        assert len(found) == 1
        homes += found
    assert sorted(homes) == list(range(len(documents)))
    assert any(list(piece) != documents[home][:8] for piece, home in zip(pieces["input_ids"], homes, strict=True))


def test_self_text_is_its_own_probe(recipe_path, tmp_path):
    settings = {
        "methods": "alora",
        "general.train": "self",
        "general.self_text": "{tokens: 400, length: 24, batch_size: 8}",
        "general.probe_tokens": "64",
        "alora.budget": "0.5",
    }
    run_recipe(load_recipe(recipe_path, settings), output_dir=tmp_path)
    assert training(tmp_path)["probe"][-1]["probe_loss"] > 0


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"alora.budget": "0.1", "methods": "alora"}, "leaves nothing for a probe: set general.probe"),
        ({"alora.budget": "0.1", "methods": "alora", "general.train_tokens": "100000"}, "no probe can be taken"),
        ({"general.probe": "words_test.jsonl"}, "general.probe.* is text of general.test"),
        ({"fresh_lora": "{r: 4}"}, "fresh_lora is for a new adapter: set alora.start to merged or bare"),
        ({"general.probe_tokens": "3"}, "general.probe_tokens must be a whole number of at least 16"),
    ],
)
def test_what_cannot_be_is_refused(recipe_path, tmp_path, settings, error):
    with pytest.raises(ALoRAError, match=error):
        run_recipe(load_recipe(recipe_path, settings), output_dir=tmp_path)
