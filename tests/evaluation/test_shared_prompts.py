"""Answers that share a prompt, under models whose caches cannot be repeated: scored as by a plain forward pass."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch

from alora_trainer.evaluation.scorer import Request, Scorer

_COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 300,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
# Layers of convolutions, of state spaces, of both in one layer; of attention to a window alone.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "num_experts": 2,
        "mamba_d_state": 8,
        "use_mamba_kernels": False,
    },
    "falcon_h1": {
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
        "head_dim": 8,
    },
    "mistral": {"sliding_window": 8},
}
SHARING = {"mistral"}


def tiny(architecture: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **_COMMON | ARCHITECTURES[architecture])
    model = AutoModelForCausalLM.from_config(config).eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data.normal_(0, 0.25)  # far from uniform, so that answers differ
    return model


def requests() -> list[Request]:
    """Three prompts, of which each has an answer of one token and two longer ones."""
    generator = torch.Generator().manual_seed(3)

    def some(count: int) -> list[int]:
        return torch.randint(3, 300, (count,), generator=generator).tolist()

    prompts = [some(length) for length in (21, 37, 18)]
    return [(("", ""), prompt, some(length)) for prompt in prompts for length in (1, 3, 5)]


def plain(model: Any) -> list[float]:
    """The log-likelihoods of the answers, each from a forward pass of its own."""
    scores = []
    for _, context, answer in requests():
        with torch.no_grad():
            logits = model(torch.tensor([context + answer]), use_cache=False).logits[0]
        found = torch.log_softmax(logits[len(context) - 1 : -1], -1)
        scores.append(float(found.gather(1, torch.tensor(answer)[:, None]).sum()))
    return scores


def scorer_of(model: Any, tokenizer: Any) -> Scorer:
    return Scorer(model, copy.deepcopy(tokenizer), batch_size=6, max_length=64)


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_log_likelihoods_are_those_of_a_plain_forward_pass(architecture: str, tokenizer: Any) -> None:
    model = tiny(architecture)
    scorer = scorer_of(model, tokenizer)
    found = [score for score, _ in scorer._loglikelihood_tokens(requests())]
    assert found == pytest.approx(plain(model), rel=1e-4, abs=1e-4)
    assert scorer._shares == (architecture in SHARING)


@pytest.mark.parametrize("fault", ["fails", "forgets"])
def test_a_model_that_cannot_go_on_from_its_own_cache_is_scored_without(
    model: Any, tokenizer: Any, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected, forward = plain(model), model.forward

    def faulty(*arguments: Any, **settings: Any) -> Any:
        if settings.get("past_key_values") is not None:
            if fault == "fails":
                raise ValueError("one token at a time")
            settings["past_key_values"] = None
        return forward(*arguments, **settings)

    model.forward = faulty
    with caplog.at_level(logging.INFO, logger="alora_trainer"):
        scorer = scorer_of(model, tokenizer)
        found = [score for score, _ in scorer._loglikelihood_tokens(requests())]
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert not scorer._shares
    assert "every answer is scored with its whole prompt" in caplog.text
