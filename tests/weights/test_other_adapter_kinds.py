"""Every kind of adapter that PEFT has but LoRA is refused by its name, before anything is trained."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from peft import LoHaConfig, LoraConfig, get_peft_model, inject_adapter_in_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from alora_trainer import ALoRAConfig, ALoRAError, ALoRATrainer
from alora_trainer.weights.adapted import adapted_weights
from alora_trainer.weights.full_weight import full_weights
from tests.penalty.test_penalty import made_map
from tests.tiny_training import tiny_llama

_TARGETS: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"]}
_PROMPT: dict[str, Any] = {"num_virtual_tokens": 3}
# What a kind needs on a model of 16 features; all others make do with target modules.
_NEEDS: dict[str, dict[str, Any]] = {
    "ADALORA": _TARGETS | {"total_step": 10},
    "ADAPTION_PROMPT": {"adapter_len": 2, "adapter_layers": 1},
    "C3A": _TARGETS | {"block_size": 4},
    "FOURIERFT": _TARGETS | {"n_frequency": 8},
    "IA3": _TARGETS | {"feedforward_modules": []},
    "MISS": _TARGETS | {"r": 2},
    "PSOFT": _TARGETS | {"r": 2},
    "ROAD": _TARGETS | {"group_size": 4},
    "SHIRA": _TARGETS | {"r": 2},
    "VBLORA": _TARGETS | {"vector_length": 8, "num_vectors": 4, "topk": 2},
    "WAVEFT": _TARGETS | {"n_frequency": 8},
    **dict.fromkeys(
        ("CARTRIDGE", "CPT", "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"), _PROMPT
    ),
}
KINDS = sorted(kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING if kind.value != "LORA")


def adapted(kind: str, folder: Any) -> Any:
    """A tiny Llama with an adapter of this kind, as PEFT makes it."""
    needs = _NEEDS.get(kind, _TARGETS)
    if kind == "XLORA":  # routes between LoRA adapters that were saved before
        get_peft_model(tiny_llama(), LoraConfig(r=2, **_TARGETS)).save_pretrained(folder)
        needs = {"hidden_size": 16, "adapters": {"one": str(folder), "two": str(folder)}}
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[next(k for k in PEFT_TYPE_TO_CONFIG_MAPPING if k.value == kind)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = tiny_llama()
        model.config.use_cache = False
        return get_peft_model(model, config_class(task_type="CAUSAL_LM", **needs))


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_that_is_not_lora_is_refused_by_name(kind: str, tmp_path: Any) -> None:
    model = adapted(kind, tmp_path)
    with pytest.raises(ALoRAError, match=rf"of the kind {kind} \(\w+\), which can be neither recorded nor held"):
        adapted_weights(model)
    with pytest.raises(ALoRAError, match="leave full_parameters out, or pass the model without the adapter"):
        full_weights(model)


@pytest.mark.parametrize("kind", ["ADALORA", "VERA", "PROMPT_TUNING"])
def test_a_trainer_refuses_it_before_the_first_step(
    kind: str, lora_model: Any, token_data: Any, training_arguments: Any, tmp_path: Any
) -> None:
    model = adapted(kind, tmp_path)
    importance = made_map(lora_model(moved=True))
    for settings in ({"alora": ALoRAConfig(record="path")}, {"importance": importance}):
        with pytest.raises(ALoRAError, match=f"of the kind {kind}"):
            ALoRATrainer(model, training_arguments(), train_dataset=token_data(), **settings)


def test_it_is_refused_beside_lora_too() -> None:
    """A mixed model's LoHa would move with nothing to hold it, and with no word of it."""
    model = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"]), mixed=True)
    model.add_adapter("other", LoHaConfig(r=2, target_modules=["v_proj"]))
    model.set_adapter(["default", "other"])
    with pytest.raises(ALoRAError, match="of the kind LOHA"):
        adapted_weights(model)


def test_it_is_refused_where_the_model_has_no_configuration_of_it() -> None:
    model = inject_adapter_in_model(LoHaConfig(**_TARGETS), tiny_llama())
    del model.peft_config
    with pytest.raises(ALoRAError, match=r"of the kind LOHA \(Linear\)"):
        adapted_weights(model)


def test_lora_beside_rows_of_the_embeddings_is_lora(lora_model: Any) -> None:
    assert len(adapted_weights(lora_model(trainable_token_indices=[3, 4]))) == 4


def test_tied_factors_are_refused() -> None:
    """PEFT gives tied layers one pair of factors, in two modules: each would be charged for both."""
    tied = tiny_llama(tie_word_embeddings=True)
    targets = ["embed_tokens", "lm_head"]
    model = get_peft_model(tied, LoraConfig(r=2, target_modules=targets, ensure_weight_tying=True))
    with pytest.raises(ALoRAError, match="model.embed_tokens and lm_head have their LoRA factors in common"):
        adapted_weights(model)
    assert len(adapted_weights(get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=targets)))) == 2
