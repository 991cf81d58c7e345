"""A base model that the recipe cannot train is refused when it is loaded, before anything is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from alora_trainer.basics.causal_model import learned_positions
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.run.models import load_base, load_other, load_tokenizer
from alora_trainer.experiment.run.run import Run
from alora_trainer.experiment.run.whole_recipe import run_recipe
from tests.tiny_recipe import write_all
from tests.tiny_tokenizer import make_tokenizer

VOCABULARY, POSITIONS = 309, 64


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("checks")).parent


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy of the tiny recipe's folder, to be spoiled."""
    return Path(shutil.copytree(original, tmp_path / "tiny"))


def with_model(folder: Path, architecture: str, **settings: Any) -> None:
    """Another architecture's weights and configuration beside the same tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    common = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **common | settings))
    model.save_pretrained(str(folder / "model"))


def add_token(folder: Path, **token: Any) -> int:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.add_special_tokens(token) if "pad_token" in token else tokenizer.add_tokens(**token)
    tokenizer.save_pretrained(str(folder / "model"))
    return len(tokenizer)


def test_an_encoder_is_refused_before_anything_is_trained(folder: Path) -> None:
    with_model(folder, "bert", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    recipe = load_recipe(folder / "recipe.yaml", {"lora.target_modules": "query,value"})
    with pytest.raises(ALoRAError, match=r"the model at model.path=.*\(BertLMHeadModel\) reads ahead"):
        run_recipe(recipe, output_dir=folder / "run")
    assert not list(folder.glob("run/**/checkpoints")) and not list(folder.glob("run/**/*.safetensors"))
    with pytest.raises(ALoRAError, match=r"\(BertLMHeadModel\) reads ahead"):  # also the second time
        load_base(recipe)


def test_a_padding_token_beyond_the_embeddings(folder: Path) -> None:
    assert add_token(folder, pad_token="[PAD]") == VOCABULARY + 1
    with pytest.raises(
        ALoRAError, match=r"embeddings for 309 tokens, and the tokenizer's padding token '\[PAD\]' is number 309"
    ):
        load_base(load_recipe(folder / "recipe.yaml"))


def test_words_beyond_the_embeddings(folder: Path) -> None:
    add_token(folder, new_tokens=["pharyngitis"])
    recipe = load_recipe(folder / "recipe.yaml")
    with pytest.raises(
        ALoRAError, match="the tokenizer's token 'pharyngitis' is number 309: use the model's own tokenizer"
    ):
        load_base(recipe)
    with pytest.raises(ALoRAError, match="the model at .*model has embeddings for 309 tokens"):
        load_other(recipe, str(folder / "model"))


def test_special_tokens_that_no_text_is_made_of_may_be_beyond_them(folder: Path) -> None:
    """As Gemma 3's token for pictures is in the models that are for text alone."""
    add_token(folder, new_tokens=["<picture>"], special_tokens=True)
    recipe = load_recipe(folder / "recipe.yaml")
    assert len(load_tokenizer(recipe)) == VOCABULARY + 1
    load_base(recipe)


def test_a_padding_number_in_the_configuration_beyond_the_embeddings(folder: Path) -> None:
    path = folder / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token_id": VOCABULARY}))
    with pytest.raises(ALoRAError, match="config.json, pad_token_id must be below vocab_size, or null"):
        load_base(load_recipe(folder / "recipe.yaml"))


@pytest.mark.parametrize(
    ("setting", "value"),
    [("general.block_length", 65), ("domain.max_length", 65), ("evaluation.max_length", 65)],
)
def test_lengths_beyond_learned_positions(folder: Path, setting: str, value: int) -> None:
    with_model(folder, "gpt2", n_embd=16, n_layer=1, n_head=2, n_positions=POSITIONS)
    overrides = {"lora.target_modules": "[c_attn]"}
    load_base(load_recipe(folder / "recipe.yaml", overrides))
    with pytest.raises(ALoRAError, match=f"embeddings for 64 positions, and {setting}={value}: set it to 64 or less"):
        load_base(load_recipe(folder / "recipe.yaml", overrides | {setting: str(value)}))


def test_lengths_are_free_where_positions_are_reckoned(folder: Path) -> None:
    model = load_base(load_recipe(folder / "recipe.yaml", {"general.block_length": "65"}))
    assert model.config.max_position_embeddings < 65 and learned_positions(model) is None


def test_what_an_architecture_refuses_by_an_assertion_is_one_line(folder: Path) -> None:
    path = folder / "model" / "config.json"
    path.write_text(json.dumps({"model_type": "reformer", "is_decoder": False, "vocab_size": 320}))
    with pytest.raises(ALoRAError, match="the model at model.path=.* cannot be loaded: .*is_decoder=True"):
        load_base(load_recipe(folder / "recipe.yaml"))


def test_answers_that_merge_with_their_prompts_are_found_when_the_data_is_written(folder: Path) -> None:
    numbers = "".join(f"({number}" for number in range(10)) * 4
    make_tokenizer(text=numbers).save_pretrained(str(folder / "model"))
    settings = yaml.safe_load((folder / "recipe.yaml").read_text())
    settings["domain"]["task"] |= {"prompt": "{question} is (", "target_delimiter": ""}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    run = Run(load_recipe(folder / "recipe.yaml"), folder / "run")
    with pytest.raises(
        ALoRAError, match=r"the answer '0' of item 1 of .*train.jsonl merges with the end of its prompt, '\('"
    ):
        run.prepare_data()
