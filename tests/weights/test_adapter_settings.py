"""What every setting of `peft.LoraConfig` does beside moving weights by its factors: as said in one table, and as measured."""

from __future__ import annotations

import copy
import dataclasses
import typing
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, VeraConfig, get_peft_model

from alora_trainer.weights import adapter_settings
from alora_trainer.weights.adapter_settings import (
    EXTRA_FIELDS,
    INITIALISATIONS,
    PLAIN_FIELDS,
    base_weights_changed,
    more_than_factors,
    not_base_without,
    not_loaded_as_trained,
    not_made_by_config,
    not_scored,
    off_is_not_base,
)
from tests.tiny_training import tiny_llama

try:
    from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig
except ImportError:
    pytest.skip("needs the settings that PEFT has from 0.21 on", allow_module_level=True)

IDS = torch.randint(2, 40, (2, 8), generator=torch.Generator().manual_seed(0))
# The settings that can be made on a tiny model; what is accepted, and what is refused for one purpose or all.
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "random": {"init_lora_weights": False},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal", "r": 4},
    "rslora": {"use_rslora": True, "rank_pattern": {"v_proj": 5}, "alpha_pattern": {"q_proj": 1}},
    "embeddings": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "some layers": {"layers_to_transform": [1]},
    "mica": {"init_lora_weights": "mica"},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "bias all": {"bias": "all"},
    "bias lora_only": {"bias": "lora_only"},
    "lora_bias": {"lora_bias": True},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "token rows": {"trainable_token_indices": [3, 4, int(IDS[0, 0])]},
    "layer_replication": {"layer_replication": [[0, 2], [0, 2]]},
    "dora": {"use_dora": True},
    "velora": {"velora_config": VeloraConfig(num_groups=4)},
    "activated": {"alora_invocation_tokens": [int(IDS[0, 1])]},
    "monteclora": {"monteclora_config": MontecloraConfig()},
    "bdlora": {"use_bdlora": BdLoraConfig(target_modules_bd_b=["q_proj", "v_proj"], nblocks=2), "r": 4},
    "kasa": {"kasa_config": KasaConfig()},
}
# What moves weights by its factors and does nothing else.
FACTORS_ALONE = ("plain", "random", "gaussian", "orthogonal", "rslora", "embeddings", "some layers")


def base_model() -> Any:
    return tiny_llama(attention_bias=True)


def config_of(case: str) -> LoraConfig:
    settings = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    return LoraConfig(**(settings | CASES[case]))


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=IDS).logits


def trained(case: str) -> Any:
    """A tiny Llama after three large steps with such an adapter."""
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base_model(), config_of(case))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model.train()
    for _ in range(3):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_every_field_of_loraconfig_is_decided_once() -> None:
    """A new version of PEFT with a new field fails here, until somebody has looked what it does."""
    fields = [field.name for field in dataclasses.fields(LoraConfig)]
    decided = [*PLAIN_FIELDS, *EXTRA_FIELDS, "init_lora_weights"]
    assert sorted(fields) == sorted(decided)


def test_every_initialisation_that_peft_names_is_decided() -> None:
    flag, names = typing.get_args(typing.get_type_hints(LoraConfig)["init_lora_weights"])
    assert flag is bool
    for name in typing.get_args(names):
        assert name.replace("_[number of iters]", "") in INITIALISATIONS
    assert more_than_factors(LoraConfig(init_lora_weights="pissa_niter_16"))


@pytest.mark.parametrize("case", CASES)
def test_the_table_is_what_peft_does(case: str, tmp_path: Path) -> None:
    config, base = config_of(case), logits(base_model())
    model = trained(case)
    moved = logits(model)
    assert float((moved - base).abs().max()) > 1e-3
    with model.disable_adapter():
        off = logits(model)
    assert torch.allclose(off, base, atol=1e-5) == (not_base_without(config) is None)
    assert not_base_without(config) == off_is_not_base(model)
    names = {name.replace(".base_layer", ""): p for name, p in model.base_model.model.named_parameters()}
    kept = all(torch.equal(p, names[n]) for n, p in base_model().named_parameters() if n.endswith("q_proj.weight"))
    assert kept == (base_weights_changed(config) is None)
    assert (more_than_factors(config) is None) == (case in FACTORS_ALONE)

    with torch.no_grad():
        first = model(input_ids=IDS[:1, :4], use_cache=True).past_key_values
        second = model(input_ids=IDS[:1, 4:], past_key_values=first).logits
    assert torch.allclose(second, moved[:1, 4:], atol=1e-5) == (not_scored(config) is None)

    model.save_pretrained(str(tmp_path))
    torch.manual_seed(99)
    again = logits(PeftModel.from_pretrained(base_model(), str(tmp_path)))
    assert torch.allclose(again, moved, atol=1e-5)
    assert not_loaded_as_trained(config) is None and not_made_by_config(config) is None


@pytest.mark.parametrize("name", ["corda", "lora_ga", "loftq", "pissa_niter_4", "eva", "of_tomorrow"])
def test_initialisations_that_a_configuration_alone_does_not_make_again(name: str) -> None:
    config = LoraConfig()
    config.init_lora_weights = name
    found = not_loaded_as_trained(config) or not_made_by_config(config)
    assert found is not None and found.startswith(f"init_lora_weights='{name}' ")
    assert not_loaded_as_trained(config) is not None or name == "eva"


@pytest.mark.parametrize("name", ["arrow_config", "megatron_config", "use_qalora"])
def test_settings_that_a_configuration_alone_does_not_make(name: str) -> None:
    config = LoraConfig()
    setattr(config, name, True)
    assert not_made_by_config(config) == f"{name}=True {EXTRA_FIELDS[name].words}"


def test_stacks_of_experts_are_no_single_weights() -> None:
    config = LoraConfig(target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"])
    assert more_than_factors(config) == "target_parameters=['mlp.experts.down_proj'] adapts stacks of experts"
    assert not_base_without(config) is None and base_weights_changed(config) is None


def test_a_field_of_a_newer_peft_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass
    class Newer(LoraConfig):
        use_more: str = "nothing"

    monkeypatch.setattr(adapter_settings, "LoraConfig", Newer)
    assert more_than_factors(Newer()) is None
    assert base_weights_changed(Newer(use_more="all")) == "use_more='all' is not known to this version of alora-trainer"


def test_tokens_of_an_adapters_own_are_not_scored() -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    assert not_scored(config) == "peft_type='PROMPT_TUNING' puts tokens of its own before a text"
    assert not_scored(VeraConfig()) is None


def test_another_kind_of_adapter_is_not_taken_for_the_base_when_off() -> None:
    model = get_peft_model(tiny_llama(), VeraConfig(target_modules=["q_proj"], r=2))
    assert off_is_not_base(model) == "peft_type='VERA' is another kind of adapter than LoRA"


def test_a_second_adapter_that_changed_the_base_weights_counts() -> None:
    model = trained("plain")
    assert off_is_not_base(copy.deepcopy(model)) is None
    model.add_adapter("other", config_of("pissa"))
    assert off_is_not_base(model) == "init_lora_weights='pissa' takes its beginning out of the base weights"
