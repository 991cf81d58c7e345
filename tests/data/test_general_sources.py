"""General text without a corpus, and without an end: sampled from the base model, and streamed."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from alora_trainer import ALoRAError
from alora_trainer.data.self_text import SelfTextConfig, sample_text
from alora_trainer.data.streaming import stream_general_text
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.run.whole_recipe import record_recipe
from tests import tiny_recipe


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_recipe.write_all(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model_and_tokenizer(tiny):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(tiny.parent / "model")
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


CONFIG = SelfTextConfig(tokens=120, length=12, batch_size=4, seed=5)


def test_sampled_text_is_a_data_set_that_says_how_it_was_made(model_and_tokenizer, tmp_path, told):
    model, tokenizer = model_and_tokenizer
    model.train()
    path = sample_text(model, tokenizer, CONFIG, tmp_path / "self.jsonl")
    assert model.training
    assert re.fullmatch(r"sampling text from the model: tokens \d+ of 120, \d+ s left", told()[0])
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    settings = json.loads((tmp_path / "self.settings.json").read_text())
    assert settings["sampling"]["length"] == 12 and 120 <= settings["tokens"] < 120 + 4 * 12
    assert len(set(texts)) > len(texts) // 2
    again = sample_text(model, tokenizer, CONFIG, tmp_path / "again.jsonl")
    assert again.read_text() == path.read_text()
    other = sample_text(
        model, tokenizer, SelfTextConfig(tokens=120, length=12, batch_size=4, seed=6), tmp_path / "o.jsonl"
    )
    assert other.read_text() != path.read_text()
    with pytest.raises(ALoRAError, match="other settings"):
        sample_text(model, tokenizer, SelfTextConfig(tokens=200), tmp_path / "self.jsonl")


def test_text_that_continues_prompts(model_and_tokenizer, tmp_path):
    model, tokenizer = model_and_tokenizer
    prompts = ["the sum of", "books"]
    path = sample_text(model, tokenizer, CONFIG, tmp_path / "self.jsonl", prompts)
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    assert {texts[0].startswith(prompts[0]), texts[4].startswith(prompts[1])} == {True}  # a batch of four each, in turn
    assert len(set(texts)) > len(texts) // 2
    settings = json.loads((tmp_path / "self.settings.json").read_text())
    assert settings["prompts"] == prompts and 120 <= settings["tokens"] < 120 + 4 * 12
    with pytest.raises(ALoRAError, match="other settings"):
        sample_text(model, tokenizer, CONFIG, tmp_path / "self.jsonl")
    with pytest.raises(ALoRAError, match="leaves nothing of a document of length=12"):
        sample_text(model, tokenizer, CONFIG, tmp_path / "long.jsonl", ["the " * 20])


def test_interrupted_sampling_goes_on_to_the_same_text(model_and_tokenizer, tmp_path, monkeypatch):
    model, tokenizer = model_and_tokenizer
    whole = sample_text(model, tokenizer, CONFIG, tmp_path / "whole.jsonl").read_text()
    generate, calls = model.generate, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(*args, **kwargs)

    monkeypatch.setattr(model, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sample_text(model, tokenizer, CONFIG, tmp_path / "cut.jsonl")
    monkeypatch.undo()
    assert not (tmp_path / "cut.jsonl").exists()
    with (tmp_path / "cut.partial").open("a") as file:
        file.write('{"batch": 2, "docum')  # torn in the middle of a line
    assert sample_text(model, tokenizer, CONFIG, tmp_path / "cut.jsonl").read_text() == whole
    assert not (tmp_path / "cut.partial").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"tokens": 0}, "tokens=0"), ({"temperature": 0.0}, "temperature"), ({"top_p": 1.5}, "top_p")],
)
def test_impossible_sampling_is_refused(settings, message):
    with pytest.raises(ALoRAError, match=message):
        SelfTextConfig(**settings)


def changed_recipe(tiny, name, **general):
    recipe = yaml.safe_load(tiny.read_text())
    recipe["general"] = {key: value for key, value in (recipe["general"] | general).items() if value is not None}
    path = tiny.parent / name
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_a_recipe_records_on_the_models_own_text(tiny, tmp_path):
    path = changed_recipe(tiny, "self.yaml", train="self", self_text={"tokens": 300, "length": 20, "batch_size": 4})
    recipe = load_recipe(path, {"alora.record": "path"})
    folder = record_recipe(recipe, output_dir=tmp_path / "out")
    assert (folder / "importance.safetensors").exists()
    assert (tmp_path / "out" / "record" / "self_text.jsonl").exists()
    # The resolved recipe does the same from anywhere.
    again = load_recipe(tmp_path / "out" / "recipe.yaml", {})
    assert again.general.train == "self" and again.general.self_text.tokens == 300


def test_a_recipe_records_on_a_stream_until_its_tokens_are_spent(tiny, tmp_path):
    path = changed_recipe(tiny, "stream.yaml", streaming=True)
    recipe = load_recipe(path, {"alora.record": "path", "alora.record_tokens": "96", "record.max_steps": "50"})
    folder = record_recipe(recipe, output_dir=tmp_path / "out")
    config = json.loads((folder / "importance_config.json").read_text())
    assert config["tokens"] == 96 and config["steps"] == 3  # of two blocks of 16 tokens


def test_streamed_blocks_hold_all_the_text(model_and_tokenizer, tmp_path):
    _, tokenizer = model_and_tokenizer
    for name in ("one", "two"):
        lines = [json.dumps({"text": f"{name} is not the sum of {name}"}) for _ in range(10)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    sources = {name: f"{name}.jsonl" for name in ("one", "two")}
    blocks = list(stream_general_text(sources, tokenizer, block_length=8, base=tmp_path))
    assert all(len(block["input_ids"]) == 8 and block["labels"] == block["input_ids"] for block in blocks)
    ids = [token for block in blocks for token in block["input_ids"]]
    documents = tokenizer.decode(ids).split(tokenizer.eos_token)
    assert sum("one" in document for document in documents) >= 9 and sum("two" in d for d in documents) >= 9


@pytest.mark.parametrize(
    ("general", "message"),
    [
        ({"train": "words_train.jsonl", "self_text": {"tokens": 5}}, "needs general.train: self"),
        ({"train": "self", "self_text": {"tokns": 5}}, "tokens"),
        ({"streaming": True, "train_tokens": 64}, "record_tokens"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(tiny, general, message):
    with pytest.raises(ALoRAError, match=message):
        load_recipe(changed_recipe(tiny, "bad.yaml", **general), {})


def test_a_stream_of_nothing_is_named(model_and_tokenizer, tmp_path):
    _, tokenizer = model_and_tokenizer
    with pytest.raises(ALoRAError, match="no file missing.jsonl"):
        stream_general_text({"a": "missing.jsonl"}, tokenizer, block_length=8, base=tmp_path)
    (tmp_path / "other.jsonl").write_text('{"body": "text"}\n')
    with pytest.raises(ALoRAError, match="no column 'text'"):
        stream_general_text({"a": "other.jsonl"}, tokenizer, block_length=8, base=tmp_path)
