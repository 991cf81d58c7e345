"""Numbers that float32 does not have: a training that meets them says so in that step, and does not end as if all were well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import Trainer

from alora_trainer import ALoRAConfig, ALoRAError, ALoRATrainer, ImportanceMap
from alora_trainer.errors import Diverged
from alora_trainer.experiment.run.train import train
from alora_trainer.penalty.layer_weights import layer_coefficients
from alora_trainer.penalty.quadratic import QuadraticPenalty
from alora_trainer.trainer.part import Part
from alora_trainer.weights.adapted import adapted_weights
from alora_trainer.weights.model_weights import present_theta, trained_weights
from alora_trainer.weights.parameterization import Parameterization
from tests.penalty.test_penalty import made_map
from tests.tiny_training import tiny_llama, token_rows

LAYER = "model.layers.1.self_attn.v_proj"
STEPS = 3


def change_gradient(model: Any, step: int, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Let the gradient of one factor be another one in this step."""
    done = 0

    def hook(gradient: torch.Tensor) -> torch.Tensor:
        nonlocal done
        done += 1
        return change(gradient) if done == step else gradient

    dict(model.named_parameters())[f"base_model.model.{LAYER}.lora_B.default.weight"].register_hook(hook)


@pytest.fixture
def protected(lora_model: Any, training_arguments: Any) -> Callable[..., ALoRATrainer]:
    def make(parts: Any = (), **settings: Any) -> ALoRATrainer:
        model = lora_model(moved=True)
        args = training_arguments(max_steps=STEPS, learning_rate=0.02)
        return ALoRATrainer(
            model, args, train_dataset=token_rows(items=32), importance=made_map(model), parts=parts,
            alora=ALoRAConfig(**settings),
        )  # fmt: skip

    return make


@pytest.mark.parametrize("step", [2, STEPS], ids=["between", "last"])
@pytest.mark.parametrize(
    "settings", [{"lam": 0.5}, {"lam": 0.5, "application": "decoupled"}, {"lam": 0}], ids=["coupled", "decoupled", "0"]
)
def test_an_infinite_gradient(protected: Any, step: int, settings: dict[str, Any]) -> None:
    trainer = protected(**settings)
    change_gradient(trainer.model, step, lambda gradient: gradient * float("inf"))
    with pytest.raises(Diverged, match=f"the gradient of {LAYER} is not finite in step {step}; .*: lower the learning"):
        trainer.train()
    assert all(bool(torch.isfinite(p).all()) for p in trainer.model.parameters())


def test_a_gradient_whose_square_is_infinite(protected: Any) -> None:
    """Clipping would multiply the whole step by zero, and Adam divide by infinity."""
    trainer = protected(lam=0.5)
    change_gradient(trainer.model, STEPS, lambda gradient: torch.full_like(gradient, 1e25))
    with pytest.raises(Diverged, match=f"the square of the gradient of {LAYER} is not finite in step {STEPS}"):
        trainer.train()


class Breaks(Part):
    """Makes a weight infinite after the last step, as a learning rate beyond all bounds does."""

    def begin(self, trainer: Any, weights: Any, *, resumes: bool) -> None:
        self.trainer = trainer

    def after_step(self, *, skipped: bool) -> None:
        if self.trainer.state.global_step == STEPS - 1:
            parameters = dict(self.trainer.model.named_parameters())
            parameters[f"base_model.model.{LAYER}.lora_B.default.weight"].data[0, 0] = float("inf")


def test_weights_that_the_last_step_breaks(protected: Any) -> None:
    with pytest.raises(Diverged, match=f"the weight of {LAYER} is not finite in step {STEPS}; there is no good"):
        protected(parts=[Breaks()], lam=0.5).train()


@pytest.mark.parametrize("lam", [1e22, 1e30])
def test_a_lambda_whose_gradient_would_move_nothing_is_named(protected: Any, lam: float) -> None:
    with pytest.raises(Diverged) as caught:
        protected(lam=lam).train()
    assert "the square of the penalty's gradient of model.layers." in str(caught.value)
    assert f"in step 2; there is no good checkpoint before it: lower lambda, which is {lam:.4g}" in str(caught.value)


def test_a_lambda_beyond_float32_is_named(protected: Any) -> None:
    with pytest.raises(Diverged, match=r"the penalty .*lower the learning rate or lambda \(which is 1e\+300\)"):
        protected(lam=1e300).train()


def test_the_decoupled_penalty_takes_any_lambda(protected: Any) -> None:
    trainer = protected(lam=1e30, application="decoupled")
    trainer.train()
    assert all(bool(torch.isfinite(p).all()) for p in trainer.model.parameters())


def test_the_decoupled_pull_of_whole_weights_takes_any_lambda() -> None:
    model = tiny_llama().requires_grad_(False)
    parameter = model.model.layers[0].self_attn.q_proj.weight.requires_grad_(True)
    weights = trained_weights(model, Parameterization.FULL)
    importance = ImportanceMap({w.name: torch.rand(w.shape) + 0.1 for w in weights}, present_theta(model, weights))
    held = parameter.detach().clone()
    parameter.data.add_(0.5)
    for lam in (1e38, 1e300):
        QuadraticPenalty(weights, importance, lam=lam, normalize=False).pull({id(parameter): 1.0})
        assert torch.allclose(parameter.detach(), held, atol=1e-6)


def test_a_pull_on_what_is_no_number_names_the_weight(lora_model: Any) -> None:
    model = lora_model(moved=True)
    weights = adapted_weights(model)
    penalty = QuadraticPenalty(weights, made_map(model), lam=1.0, pulls=True)
    broken = next(weight for weight in weights if weight.name == LAYER)
    broken.parameter_a.data[0, 0] = float("nan")
    with pytest.raises(Diverged, match=f"the penalty of {LAYER} is not finite"):
        penalty.pull({id(p): 0.1 for weight in weights for p in weight.parameters})


def test_a_plain_training_of_a_run_that_ends_in_nan_is_refused(lora_model: Any, training_arguments: Any) -> None:
    model = lora_model(moved=True)
    change_gradient(model, STEPS, lambda gradient: gradient * float("nan"))
    args = training_arguments(max_steps=STEPS, save_strategy="steps", save_steps=1)
    with pytest.raises(
        Diverged, match=f"the parameter of base_model.* is not finite in step {STEPS}; the last good checkpoint is .*-2"
    ):
        train(Trainer(model, args, train_dataset=token_rows(items=32)))


@pytest.mark.parametrize("normalize", [True, False])
def test_importance_that_holds_nothing_is_refused(lora_model: Any, normalize: bool) -> None:
    importance = made_map(lora_model(moved=True))
    names = list(importance)
    zero = importance.with_omega({name: torch.zeros_like(importance[name]) for name in names})
    with pytest.raises(ALoRAError, match="zero throughout, so it can hold nothing"):
        layer_coefficients(zero, names, layer_weights="none", normalize=normalize)
    one = {name: importance[name] if name == names[0] else torch.zeros_like(importance[name]) for name in names}
    half = importance.with_omega(one)
    for given in (dict.fromkeys(names, 0.0), {names[0]: 0.0, ".*": 1.0}):
        with pytest.raises(ALoRAError, match="every layer weight is zero where there is importance"):
            layer_coefficients(half, names, layer_weights=given, normalize=normalize)
    assert layer_coefficients(half, names, layer_weights={names[0]: 1.0, ".*": 0.0}, normalize=normalize)[names[0]] > 0
