"""A map does not know whether the base under the adapter was quantised."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from alora_trainer import ALoRAConfig, ALoRATrainer
from tests.penalty.test_penalty import dense_penalty
from tests.tiny_training import move_factors


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_map_goes_from_a_quantised_base_to_the_plain_one_and_back(token_data, training_arguments, tmp_path, kind):
    """bitsandbytes on the CPU: the same names and shapes, and the same penalty at the same factors, either way."""
    pytest.importorskip("bitsandbytes")
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=40,
        max_position_embeddings=32, bos_token_id=0, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    bits: dict[str, Any] = {"load_in_8bit": True}
    if kind == "nf4":
        bits = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}

    def build(quantised: bool) -> Any:
        settings: dict[str, Any] = {"dtype": torch.float32}
        if quantised:
            settings |= {"quantization_config": BitsAndBytesConfig(**bits), "device_map": "cpu"}
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", **settings)
        torch.manual_seed(1)
        model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
        move_factors(model, 0.2)
        return model

    args = training_arguments(max_steps=2, learning_rate=0.01, train_sampling_strategy="sequential")
    maps = {}
    for quantised in (False, True):
        trainer = ALoRATrainer(build(quantised), args, train_dataset=token_data(), alora=ALoRAConfig(record="path"))
        trainer.train()
        maps[quantised] = trainer.importance
    assert {n: o.shape for n, o in maps[False].items()} == {n: o.shape for n, o in maps[True].items()}
    for name, omega in maps[False].items():  # the base's rounding shows, and no more than that
        likeness = torch.nn.functional.cosine_similarity(omega.flatten(), maps[True][name].flatten(), dim=0)
        assert float(likeness) > 0.8, name
    for quantised in (False, True):
        model = build(not quantised)
        move_factors(model, 0.05)
        held = ALoRAConfig(lam=0.3, normalize=False)
        expected = float(dense_penalty(model, maps[quantised], lam=0.3).detach())
        tuner = ALoRATrainer(model, args, train_dataset=token_data(), importance=maps[quantised], alora=held)
        tuner.train()
        assert tuner.state.log_history[0]["penalty"] == pytest.approx(expected, rel=1e-5)
