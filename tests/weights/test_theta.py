"""theta* of all weights as one object, and what a parameterization means."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from alora_trainer.errors import ALoRAError
from alora_trainer.weights.model_weights import adapter_of, present_theta, trained_weights
from alora_trainer.weights.parameterization import Parameterization
from alora_trainer.weights.steps import Factors
from alora_trainer.weights.theta import AdapterTheta, FullTheta


def test_the_setting_and_the_type_are_one() -> None:
    for parameterization in Parameterization:
        assert Parameterization.of(parameterization.full_parameters) is parameterization
    assert Parameterization.FULL.words == "whole weights" and Parameterization.ADAPTER.words == "a LoRA adapter"


def test_an_adapter_as_theta(lora_model: Callable[..., Any]) -> None:
    model = lora_model(moved=True)
    weights = trained_weights(model, Parameterization.ADAPTER)
    theta, again = present_theta(model, weights), present_theta(model, weights)
    assert isinstance(theta, AdapterTheta) and adapter_of(weights) == "default"
    assert theta == again and list(theta) == [weight.name for weight in weights] and len(theta.state) == 2 * len(theta)
    first, *others = theta
    part = theta.restricted([first])
    assert list(part) == [first] and len(part.state) == 2 and part.config.target_modules == {first}
    assert theta.config.target_modules == {"q_proj", "v_proj"}
    further = part.with_unmoved({others[0]: theta[others[0]].shape})
    assert further[others[0]].shape == theta[others[0]].shape and further[others[0]].a.shape[0] == 0
    with torch.no_grad():
        weights[0].parameters[0].add_(1)
    assert theta == again != present_theta(model, weights)


def test_a_part_of_an_adapter_is_configured_as_that_part(lora_model: Callable[..., Any]) -> None:
    """Token rows, biases and modules that were trained beside are not in it: PEFT would look for them in its file."""
    model = lora_model(trainable_token_indices=[3, 4], modules_to_save=["lm_head"], bias="all")
    theta = present_theta(model, trained_weights(model, Parameterization.ADAPTER))
    assert any("token_adapter" in key for key in theta.state)
    part = theta.restricted([next(iter(theta))])
    assert len(part.state) == 2 and all(".lora_" in key for key in part.state)
    assert part.config.trainable_token_indices is part.config.modules_to_save is None and part.config.bias == "none"
    assert theta.config.trainable_token_indices == [3, 4]


def test_whole_weights_as_theta(_tiny_llama: Any) -> None:
    model = copy.deepcopy(_tiny_llama)
    weights = trained_weights(model, Parameterization.FULL)
    theta = present_theta(model, weights)
    assert isinstance(theta, FullTheta) and theta == present_theta(model, weights) and adapter_of(weights) is None
    name = weights[0].name
    assert list(theta.restricted([name])) == [name]
    assert torch.equal(theta[name].weight, weights[0].matrices[0])
    with torch.no_grad():
        weights[0].parameters[0].add_(1)
    assert theta != present_theta(model, weights)
    with pytest.raises(ALoRAError, match="there is no base weight to hold it at"):
        theta.with_unmoved({"more": (2, 3)})


def test_the_norm_of_thin_factors() -> None:
    left, right = torch.randn(7, 3), torch.randn(3, 5)
    assert Factors(left, right).norm() == pytest.approx(float((left @ right).norm()), rel=1e-5)
    assert Factors(left * 0, right).norm() == 0
