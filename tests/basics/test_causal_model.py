"""What is taken for a causal language model, what is refused, and for how many positions a model has embeddings."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from alora_trainer.basics.causal_model import check_causal, learned_positions
from alora_trainer.errors import ALoRAError

_ENCODER: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 40,
    "max_position_embeddings": 30,
    "pad_token_id": 0,
}
_DECODER: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "vocab_size": 40,
    "max_position_embeddings": 30,
}
_GPT: dict[str, Any] = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 30, "vocab_size": 40}
_OPT: dict[str, Any] = {
    "hidden_size": 16,
    "word_embed_proj_dim": 16,
    "ffn_dim": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 40,
    "max_position_embeddings": 30,
}
_MAMBA = {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 1, "vocab_size": 40, "use_mamba_kernels": False}


def tiny(architecture: str, settings: dict[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **settings)).eval()


@pytest.mark.parametrize(
    ("architecture", "settings", "positions"),
    [
        ("gpt2", _GPT, 30),
        ("opt", _OPT, 30),
        ("bert", {**_ENCODER, "is_decoder": True}, 30),
        ("roberta", {**_ENCODER, "is_decoder": True}, 29),  # its positions begin behind the padding token's row
        ("gptj", {**_GPT, "rotary_dim": 4}, 30),  # rotary, from a table
        ("ctrl", {**_GPT, "dff": 16}, 30),  # a table that is no parameter
        ("llama", {**_ENCODER, "num_key_value_heads": 2}, None),
        ("mamba", _MAMBA, None),
    ],
)
def test_causal_models_pass_and_their_positions_are_known(
    architecture: str, settings: dict[str, Any], positions: int | None
) -> None:
    model = tiny(architecture, settings)
    for training in (True, False):
        check_causal(model, "this", training=training)
    assert learned_positions(model) == positions
    with torch.no_grad():
        model(torch.full((1, positions or 64), 5))
        if positions is not None:
            with pytest.raises((IndexError, RuntimeError)):
                model(torch.full((1, positions + 1), 5))


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [("bert", _ENCODER), ("roberta", _ENCODER), ("electra", {**_ENCODER, "embedding_size": 16})],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_encoders_are_refused(architecture: str, settings: dict[str, Any], dtype: torch.dtype) -> None:
    model = tiny(architecture, settings).to(dtype)
    for training in (True, False):
        with pytest.raises(
            ALoRAError, match="reads ahead: .* is_decoder: true .* choose a causal language model"
        ) as found:
            check_causal(model, "the model at here", training=training)
        assert str(found.value).startswith(f"the model at here ({type(model).__name__})")


def test_a_decoder_that_learns_to_repeat_its_input_is_refused_for_training_and_can_be_scored() -> None:
    model = tiny("bart", _DECODER)
    with pytest.raises(ALoRAError, match="does not learn to predict the next token: its labels are not shifted"):
        check_causal(model, "this", training=True)
    check_causal(model, "this", training=False)


def test_a_model_that_needs_more_than_token_ids_is_refused(_tiny_llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_pictures(input_ids: torch.Tensor, labels: Any = None) -> Any:
        raise ValueError("pixel_values are missing\nand so on")

    monkeypatch.setattr(_tiny_llama, "forward", with_pictures)
    with pytest.raises(
        ALoRAError, match=r"\(LlamaForCausalLM\) does not run on token ids alone \(pixel_values are missing\):"
    ):
        check_causal(_tiny_llama, "this", training=True)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(lora_model: Any, training: bool) -> None:
    model = lora_model(lora_dropout=0.5, moved=True)
    model.train(not training)
    state, before = torch.get_rng_state(), [p.detach().clone() for p in model.parameters()]
    needed = [p.requires_grad for p in model.parameters()]
    check_causal(model, "this", training=training)
    assert all(module.training is not training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None and torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert [p.requires_grad for p in model.parameters()] == needed
    embeddings = model.get_input_embeddings()
    assert not embeddings._forward_hooks
