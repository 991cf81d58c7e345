"""Whatever a recipe's `lora` does: what is saved, on the bare base model, is what was trained, or nothing is trained at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from alora_trainer.errors import ALoRAError
from alora_trainer.evaluation.kl_to_base import kl_to_base
from alora_trainer.evaluation.runner import evaluate_model
from alora_trainer.experiment.methods import get_method
from alora_trainer.experiment.methods.kl_anchor import KLAnchorOptions, KLAnchorTrainer
from alora_trainer.experiment.methods.method import MethodOptions
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.run.measure import _covering
from alora_trainer.experiment.run.models import load_base, load_to_score, with_fresh_adapter
from alora_trainer.experiment.run.start import attach_adapter, starting_model
from alora_trainer.experiment.run.training_recipe import as_trained, recorded_adapter
from alora_trainer.experiment.run.whole_recipe import record_recipe, run_recipe
from tests.tiny_recipe import write_all
from tests.tiny_training import move_factors

IDS = torch.arange(4, 20)[None]
LITTLE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 40,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe, with a model that has biases."""
    written = write_all(tmp_path_factory.mktemp("tiny"))
    config = LlamaConfig.from_pretrained(written.parent / "model", attention_bias=True)
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(written.parent / "model")
    return written


@pytest.fixture
def recipe(tiny: Path) -> Callable[..., Recipe]:
    """`recipe(start="merged", **lora)`: the tiny recipe with settings of `lora`, and of `fresh_lora` for ``fresh_...``."""

    def make(start: str = "recorded", anchor: str = "reference", **lora: Any) -> Recipe:
        overrides = {"alora.start": start, "alora.anchor": anchor}
        for key, value in lora.items():
            section = "fresh_lora" if key.startswith("fresh_") else "lora"
            overrides[f"{section}.{key.removeprefix('fresh_')}"] = str(value)
        return load_recipe(tiny, overrides)

    return make


def moved(model: Any) -> Any:
    """Everything that trains, moved."""
    move_factors(model, 0.1)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_" not in name:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=IDS).logits


def recorded(recipe: Recipe, folder: Path) -> Path:
    """The adapter that a recording by this recipe might leave behind."""
    moved(with_fresh_adapter(load_base(recipe), recipe)).save_pretrained(str(folder))
    return folder


_EVERY_START = ({}, {"use_rslora": True, "rank_pattern": "{v_proj: 3}"}, {"init_lora_weights": "orthogonal"})
_NOT_MERGED: tuple[dict[str, Any], ...] = (
    {"bias": "all"},
    {"lora_bias": True},
    {"modules_to_save": "[lm_head]"},
    {"trainable_token_indices": "[4, 5, 6]"},
)
_RECORDED_ALONE: tuple[dict[str, Any], ...] = ({"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"})
ACCEPTED = [
    *(("merged", "alora", lora) for lora in (*_EVERY_START, {"init_lora_weights": False})),
    *(("bare", "alora", lora) for lora in (_EVERY_START[1], *_NOT_MERGED)),
    *(("recorded", "alora", lora) for lora in (*_NOT_MERGED, *_RECORDED_ALONE)),
    *(("recorded", "lora_ab", lora) for lora in (_NOT_MERGED[3], *_RECORDED_ALONE)),
    *(("recorded", "lora", lora) for lora in (_NOT_MERGED[1], *_RECORDED_ALONE, {"use_dora": True})),
]


@pytest.mark.parametrize(("start", "name", "lora"), ACCEPTED)
def test_what_is_saved_is_what_was_trained(
    recipe: Any, tmp_path: Path, start: str, name: str, lora: dict[str, Any]
) -> None:
    method, whole = get_method(name), recipe(start, **lora)
    own = as_trained(whole, method)
    importance = recorded(whole, tmp_path / "map") if method.needs_recording else None
    adapter = starting_model(
        own,
        method,
        own.options(method),
        importance=importance,
        learned=None,
        folder=tmp_path,
        general=None,
        collate=None,
    )
    before = logits(adapter.model)
    after = logits(moved(adapter.model))
    assert float((after - before).abs().max()) > 0.01
    adapter.save(tmp_path / "adapter")
    bare = PeftModel.from_pretrained(load_base(own), str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(bare), after, rtol=1e-4, atol=1e-5)


REFUSED = [
    *(("merged", lora, "only LoRA's factors can be joined") for lora in (*_NOT_MERGED, *_RECORDED_ALONE)),
    *(
        ("merged", lora, "only LoRA's factors can be joined")
        for lora in (
            {"fresh_bias": "lora_only"},
            {"fresh_lora_bias": True},
            {"fresh_trainable_token_indices": "[4]"},
            {"fresh_init_lora_weights": "pissa"},
            {"fresh_use_dora": True},
            {"target_parameters": "[mlp.experts.down_proj]"},
            {"ensure_weight_tying": True},
        )
    ),
    *(("bare", lora, "the recorded adapter has others beside its factors") for lora in _RECORDED_ALONE),
    ("bare", {"fresh_init_lora_weights": "olora"}, "the new adapter has others beside its factors"),
    ("recorded", {"init_lora_weights": "pissa_niter_4"}, "its files alone would not make the model that was trained"),
    ("recorded", {"init_lora_weights": "eva"}, "begins with what it finds in data"),
    ("recorded", {"init_lora_weights": "corda"}, "that it finds in data"),
    ("recorded", {"init_lora_weights": "lora_ga"}, "that it finds in data"),
    ("recorded", {"use_qalora": True}, "is for GPTQ layers"),
    (
        "recorded",
        {"alora_invocation_tokens": "[5]"},
        "is at work after certain tokens alone, so that it could not be scored",
    ),
]


@pytest.mark.parametrize(("start", "lora", "error"), REFUSED)
def test_what_would_be_another_is_refused_before_anything_is_written(
    recipe: Any, tmp_path: Path, start: str, lora: dict[str, Any], error: str
) -> None:
    with pytest.raises(ALoRAError, match=error) as caught:
        run_recipe(recipe(start, **lora), output_dir=tmp_path / "run")
    assert str(caught.value).count(next(iter(lora)).removeprefix("fresh_")) >= 1
    assert not (tmp_path / "run").exists()


_TAKEN_OUT = ("pissa", "olora", "corda_kpm", "lora_ga", "lora_null", "lora_null_frozen", "sc_lora")


@pytest.mark.parametrize("name", _TAKEN_OUT)
@pytest.mark.parametrize("lora", (*_NOT_MERGED, {"use_dora": True}))
def test_what_is_trained_beside_the_factors_would_be_lost_of_what_is_taken_out(
    recipe: Any, name: str, lora: dict[str, Any]
) -> None:
    """PEFT's conversion of such an adapter keeps LoRA's factors alone, or ends in an error after the training."""
    (setting,) = lora
    with pytest.raises(ALoRAError, match=rf"lora\.{setting}: {name} saves LoRA's factors alone.* would be lost"):
        as_trained(recipe(**lora), get_method(name))
    as_trained(recipe(), get_method(name))


@pytest.mark.parametrize("lora", ({"layers_to_transform": "[0]"}, {"exclude_modules": "[down_proj]"}, *_NOT_MERGED))
def test_osf_refuses_what_it_would_not_do(recipe: Any, lora: dict[str, Any]) -> None:
    (setting,) = lora
    with pytest.raises(ALoRAError, match=rf"lora\.{setting}: PEFT's OSF has no such setting"):
        as_trained(recipe(**lora), get_method("osf"))
    as_trained(recipe(target_modules="[q_proj]"), get_method("osf"))


def test_osf_refuses_layers_that_peft_would_pass_over(tmp_path: Path) -> None:
    """Those of GPT-2 keep their transpose, and PEFT's OSF would leave nothing to train."""
    method, base = get_method("osf"), GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=40))
    options = MethodOptions(method.default_options())
    with pytest.raises(ALoRAError, match="knows linear layers, and transformer.h.0.attn.c_attn is a Conv1D"):
        config = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
        attach_adapter(method, options, base, config, seed=0, folder=tmp_path, general=None, collate=None)
    base = LlamaForCausalLM(LlamaConfig(**LITTLE))
    config = LoraConfig(target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    made = attach_adapter(method, options, base, config, seed=0, folder=tmp_path, general=None, collate=None)
    trained = {name.partition("_proj")[0] for name, p in made.model.named_parameters() if p.requires_grad}
    assert {name.rpartition(".")[2] for name in trained} == {"q", "down"}


@pytest.mark.parametrize("init", ["pissa_niter_4", "eva", "lora_ga"])
def test_what_a_recording_alone_would_leave_behind_is_looked_at_too(recipe: Any, tmp_path: Path, init: str) -> None:
    with pytest.raises(ALoRAError, match=f"the recorded adapter: init_lora_weights='{init}'"):
        record_recipe(recipe(init_lora_weights=init), output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("lora", _RECORDED_ALONE)
def test_the_base_as_anchor_is_refused_where_the_frozen_weights_are_not_the_base(recipe: Any, lora: Any) -> None:
    as_trained(recipe("recorded", "reference", **lora), get_method("alora"))
    with pytest.raises(
        ALoRAError, match="start='recorded' with anchor='base' holds weights relative to those of the base"
    ):
        as_trained(recipe("recorded", "base", **lora), get_method("alora"))
    with pytest.raises(ALoRAError, match="start='bare' with anchor='base'.*the new adapter"):
        as_trained(recipe(**lora), get_method("ewclora"))


def test_a_given_map_is_looked_at_before_the_first_method(recipe: Any, tmp_path: Path) -> None:
    """The recipe's own `lora` is plain: what counts is the adapter that the map has."""
    theirs = recorded(recipe(bias="all", modules_to_save="[lm_head]"), tmp_path / "map")
    config = recorded_adapter(theirs)
    assert config is not None and config.bias == "all"
    as_trained(recipe("recorded"), get_method("alora"), recorded=config)
    with pytest.raises(ALoRAError, match="bias='all' trains biases.*joined"):
        as_trained(recipe("merged"), get_method("alora"), recorded=config)
    assert recorded_adapter(None) is None


def test_fisher_information_is_that_of_the_base_model(recipe: Any) -> None:
    """An adapter that begins elsewhere would move the weights before anything is measured."""
    own = recipe(init_lora_weights=False, bias="all", trainable_token_indices="[4]", rank_pattern="{v_proj: 3}")
    base = load_base(own)
    expected = logits(base)
    model = with_fresh_adapter(base, _covering(own, own.fisher.weights))
    assert torch.equal(logits(model), expected)
    trains = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trains and all("lora_A" in name or "lora_B" in name for name in trains)


@pytest.mark.parametrize("lora", [*_RECORDED_ALONE, {"bias": "all"}, {"use_rslora": True}])
def test_the_divergence_is_from_the_base_model(recipe: Any, tmp_path: Path, lora: dict[str, Any]) -> None:
    """With the adapter off, the model of some adapters is not the base: that is loaded anew."""
    own = recipe(**lora)
    folder = recorded(own, tmp_path / "adapter")
    windows = {"words": [([4], IDS[0, 1:].tolist())]}
    with_kl = load_recipe(
        own.base / "recipe.yaml", {"evaluation.kl_tokens": "10"} | {f"lora.{k}": str(v) for k, v in lora.items()}
    )
    model, base = load_to_score(with_kl, folder, None, torch.device("cpu"))
    model.eval()
    found = kl_to_base(model, base, windows, batch_size=1).nats_per_token
    right = kl_to_base(model, load_base(own).eval(), windows, batch_size=1).nats_per_token
    assert found == pytest.approx(right, rel=1e-6) and found > 0
    assert (base is None) == ("use_rslora" in lora)
    if base is not None:
        with pytest.raises(ALoRAError, match="this model is not the base model .*pass the base model, too"):
            kl_to_base(model, None, windows, batch_size=1)
        with pytest.raises(ALoRAError, match="this model is not the base model"):
            evaluate_model(model, None, general={"x": Path("x")}, tasks={}, task_specs=[], config=with_kl.evaluation)
        assert load_to_score(own, folder, None, torch.device("cpu"))[1] is None  # nobody asks for the divergence


@pytest.mark.parametrize("lora", [*_RECORDED_ALONE, {"bias": "all"}])
def test_kl_anchor_needs_an_adapter_without_which_the_model_is_the_base(
    recipe: Any, lora: dict[str, Any], token_data: Any, training_arguments: Any
) -> None:
    own = recipe(**lora)
    with pytest.raises(ALoRAError, match="and kl_anchor takes the model without its adapter for the base model"):
        as_trained(own, get_method("kl_anchor"))
    model = with_fresh_adapter(load_base(own), own)
    with pytest.raises(ALoRAError, match="without its adapter this model is not the base model"):
        KLAnchorTrainer(model, training_arguments(), train_dataset=token_data(), general=[], options=KLAnchorOptions())


def test_an_adapter_that_puts_tokens_before_the_text_is_not_scored(recipe: Any, tmp_path: Path) -> None:
    """Answers that share a prompt are run after it: these tokens would be put before both parts."""
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    get_peft_model(load_base(recipe()), config).save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(
        ALoRAError, match="adapter cannot be scored: peft_type='PROMPT_TUNING' puts tokens of its own before"
    ):
        load_to_score(recipe(), tmp_path / "adapter", None, torch.device("cpu"))
