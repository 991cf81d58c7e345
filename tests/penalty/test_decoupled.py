"""The decoupled penalty: its implicit step against float64, and through whole trainings."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from alora_trainer import ALoRAConfig, ALoRAError, ALoRATrainer
from alora_trainer.importance.kinds.formats import store
from alora_trainer.penalty import QuadraticPenalty
from alora_trainer.penalty.backends import pull as decoupled
from alora_trainer.weights import row_blocks
from alora_trainer.weights.adapted import adapted_weights
from alora_trainer.weights.steps import Factors, movement_factors
from tests.conftest import move_factors
from tests.penalty.test_penalty import dense_penalty, made_map, relative
from tests.tiny_map import ELEMENTWISE_FORMATS


class Weight:
    """What `pull_back` needs of an adapted weight."""

    def __init__(self, a: torch.Tensor, b: torch.Tensor, scaling: float) -> None:
        self.parameter_a, self.parameter_b = nn.Parameter(a.clone()), nn.Parameter(b.clone())
        self.scaling = scaling
        self.dtype, self.device = a.dtype, a.device

    a = property(lambda self: self.parameter_a.detach())
    b = property(lambda self: self.parameter_b.detach())


def make(m, n, r, storage, seed, movement, dtype=torch.float64):
    """A weight, its importance, theta* and the drift from it."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    omega = rand(m, n).abs() ** 3
    omega[rand(m, n) < -1] = 0
    a, b = rand(r, n), rand(m, r)
    a_star, b_star = a + movement * rand(r, n), b + movement * rand(m, r)
    a, b, a_star, b_star = (x.to(dtype) for x in (a, b, a_star, b_star))
    weight = Weight(a, b, 1.7)

    def drift(new_a, new_b):
        return movement_factors(a_star, b_star, new_a, new_b, weight.scaling)

    stored = store(omega.to(dtype), storage)
    return weight, stored, drift, 1.7 * b_star.double() @ a_star.double()


def dense_omega(stored):
    if stored.format == "float64":
        return stored.parts[""]
    return stored.rows(slice(0, stored.shape[0]), torch.float64)


def implicit_reference(a, b, target, omega, scaling, strength_a, strength_b):
    """Row by row, then column by column, in float64 and with nothing shared: the minimiser of P + |d|^2 / 2t."""
    a, b = a.double().clone(), b.double().clone()
    r = a.shape[0]
    for i in range(b.shape[0]):
        hessian = 2 * scaling**2 * (a * omega[i]) @ a.T
        gradient = 2 * scaling * a @ (omega[i] * (scaling * b[i] @ a - target[i]))
        b[i] -= torch.linalg.solve(torch.eye(r, dtype=torch.float64) / strength_b + hessian, gradient)
    for j in range(a.shape[1]):
        hessian = 2 * scaling**2 * (b * omega[:, j : j + 1]).T @ b
        gradient = 2 * scaling * b.T @ (omega[:, j] * (scaling * b @ a[:, j] - target[:, j]))
        a[:, j] -= torch.linalg.solve(torch.eye(r, dtype=torch.float64) / strength_a + hessian, gradient)
    return a, b


def penalty_of(weight, target, omega) -> float:
    return float((omega * (weight.scaling * weight.b.double() @ weight.a.double() - target) ** 2).sum())


@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(1, 25), n=st.integers(1, 30), r=st.integers(1, 6), storage=st.sampled_from(ELEMENTWISE_FORMATS),
    seed=st.integers(0, 2**31), movement=st.sampled_from([1e-3, 0.3]), exponent=st.floats(-6, 3),
    block=st.integers(1, 300), group=st.integers(1, 300),
)  # fmt: skip
def test_the_implicit_step_equals_the_dense_reference(m, n, r, storage, seed, movement, exponent, block, group):
    strength_a, strength_b = 10.0**exponent, 3 * 10.0**exponent
    weight, stored, drift, target = make(m, n, r, storage, seed, movement)
    omega = dense_omega(stored)
    a, b = implicit_reference(weight.a, weight.b, target, omega, 1.7, strength_a, strength_b)
    before = penalty_of(weight, target, omega)
    sizes = row_blocks.BLOCK_ELEMENTS, decoupled._GROUP_ELEMENTS
    row_blocks.BLOCK_ELEMENTS, decoupled._GROUP_ELEMENTS = block, group
    try:
        value = decoupled.pull_back(weight, stored, drift, strength_a, strength_b)
    finally:
        row_blocks.BLOCK_ELEMENTS, decoupled._GROUP_ELEMENTS = sizes
    assert float(value) == pytest.approx(before, rel=1e-6)
    # The blocked sums of the factored and logarithmic formats decode in another order: their last bits differ.
    assert float((weight.b - b).norm()) <= 1e-5 * float(b.norm())
    assert float((weight.a - a).norm()) <= 1e-5 * float(a.norm())


@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(1, 25), n=st.integers(1, 30), r=st.integers(1, 6), storage=st.sampled_from(ELEMENTWISE_FORMATS),
    seed=st.integers(0, 2**31), exponent=st.floats(-8, 30), ratio=st.sampled_from([0.0, 1.0, 16.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)  # fmt: skip
def test_no_lambda_can_raise_the_penalty(m, n, r, storage, seed, exponent, ratio, dtype):
    """Up to 1e30: finite, and step after step no higher, with either factor alone or both at different rates."""
    weight, stored, drift, target = make(m, n, r, storage, seed, 0.3, dtype)
    omega = dense_omega(stored)
    rounding = torch.finfo(dtype).eps * float((omega * target.square()).sum())
    last = penalty_of(weight, target, omega)
    for _ in range(4):
        decoupled.pull_back(weight, stored, drift, ratio * 10.0**exponent, 10.0**exponent)
        now = penalty_of(weight, target, omega)
        assert math.isfinite(now)
        assert now <= last * (1 + 1e-4) + rounding
        last = now


@pytest.mark.parametrize("storage", ["float32", "factored"])
def test_a_small_step_is_the_gradient_step(storage):
    weight, stored, drift, target = make(20, 30, 4, storage, 3, 0.2)
    omega = dense_omega(stored)
    a, b = weight.a.clone().requires_grad_(), weight.b.clone().requires_grad_()
    (omega * (1.7 * b @ a - target) ** 2).sum().backward()
    start_a, start_b = weight.a.clone(), weight.b.clone()
    decoupled.pull_back(weight, stored, drift, 1e-9, 1e-9)
    assert relative((start_a - weight.a) / 1e-9, a.grad) < 1e-5
    assert relative((start_b - weight.b) / 1e-9, b.grad) < 1e-5


def test_factors_that_cannot_tell_their_directions_apart():
    """Equal rows of A make every H singular, whatever Omega is: the ridge keeps it solvable."""
    weight, stored, _, target = make(30, 40, 4, "float32", 5, 0.3, torch.float32)
    weight.parameter_a.data[1:] = weight.parameter_a.data[:1]

    def drift(a, b):
        return Factors(torch.cat([1.7 * b, -target.float()], 1), torch.cat([a, torch.eye(40)]))

    before = penalty_of(weight, target, dense_omega(stored))
    decoupled.pull_back(weight, stored, drift, 1e20, 1e20)
    assert penalty_of(weight, target, dense_omega(stored)) < before


def test_the_trainer_makes_the_step_at_the_optimizers_learning_rate(lora_model, token_data, training_arguments):
    """After the optimizer's own step and with its learning rate, on B given A and then on A given B."""
    model = lora_model(moved=True)
    importance = made_map(model)
    move_factors(model, 0.05)
    plain, held = copy.deepcopy(model), copy.deepcopy(model)
    settings = {"max_steps": 1, "learning_rate": 0.01, "gradient_accumulation_steps": 2, "max_grad_norm": 0.1}
    config = ALoRAConfig(lam=20.0, application="decoupled", layer_weights="none", normalize=False)
    ALoRATrainer(plain, training_arguments(**settings), train_dataset=token_data()).train()
    trainer = ALoRATrainer(
        held, training_arguments(**settings), train_dataset=token_data(), importance=importance, alora=config
    )
    trainer.train()
    for free, moved in zip(adapted_weights(plain), adapted_weights(held), strict=True):
        reference = importance.reference[free.name]
        target = reference.scaling * reference.b.double() @ reference.a.double()
        omega = importance[free.name].double()
        a, b = implicit_reference(free.a, free.b, target, omega, free.scaling, 0.01 * 20.0, 0.01 * 20.0)
        assert relative(moved.a - free.a, a - free.a.double()) < 1e-3
        assert relative(moved.b - free.b, b - free.b.double()) < 1e-3
    expected = dense_penalty(plain, importance, lam=20.0, layer_weights="none")
    assert trainer.state.log_history[0]["penalty"] == pytest.approx(float(expected), rel=1e-4)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(trainer.state.log_history[0]["ce_loss"], rel=1e-4)


@pytest.mark.parametrize("optim", ["sgd", "adamw_torch", "adafactor"])
def test_a_vanishing_lambda_is_plain_lora(lora_model, token_data, training_arguments, optim):
    results = {}
    for lam in (None, 0.0, 1e-30):
        model = lora_model(moved=True, lora_dropout=0.1)
        extra = {}
        if lam is not None:
            extra = {"importance": made_map(model), "alora": ALoRAConfig(lam=lam, application="decoupled")}
        args = training_arguments(optim=optim, learning_rate=0.01)
        ALoRATrainer(model, args, train_dataset=token_data(), **extra).train()
        results[lam] = model
    for lam in (0.0, 1e-30):
        for (name, p), (_, q) in zip(results[None].named_parameters(), results[lam].named_parameters(), strict=True):
            assert torch.equal(p, q), (lam, name)


@pytest.mark.parametrize("optim", ["sgd", "adamw_torch"])
def test_a_huge_lambda_holds_the_weights_and_learning_goes_on(lora_model, token_data, training_arguments, optim):
    """Coupled, lambda = 1e12 diverges under SGD; decoupled, it keeps theta* where Omega is positive everywhere."""
    model = lora_model(moved=True)
    importance = made_map(model)
    config = ALoRAConfig(lam=1e12, application="decoupled")
    trainer = ALoRATrainer(
        model,
        training_arguments(optim=optim, max_steps=20),
        train_dataset=token_data(),
        importance=importance,
        alora=config,
    )
    trainer.train()
    drifts = [log["drift"] for log in trainer.state.log_history if "drift" in log]
    assert all(map(math.isfinite, drifts))
    size = sum(float((w.scaling * w.b @ w.a).norm()) ** 2 for w in adapted_weights(model)) ** 0.5
    assert max(drifts) < 0.05 * size
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_step_that_the_optimizer_skipped_is_no_step(lora_model):
    from alora_trainer.trainer.protecting import Protecting

    model = lora_model(moved=True)
    importance = made_map(model)
    move_factors(model, 0.05)
    weights = adapted_weights(model)
    protecting = Protecting(importance, ALoRAConfig(application="decoupled"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = SimpleNamespace(max_steps=10, global_step=0)
    trainer = SimpleNamespace(
        model=model, optimizer=optimizer, state=state, accelerator=None, is_deepspeed_enabled=False
    )
    protecting.begin(trainer, weights, resumes=False)
    protecting.before_forward()
    before = [w.b.clone() for w in weights]
    protecting.after_step(skipped=True)
    assert all(torch.equal(w.b, b) for w, b in zip(weights, before, strict=True))
    protecting.after_step(skipped=False)
    assert not any(torch.equal(w.b, b) for w, b in zip(weights, before, strict=True))


def test_a_frozen_factor_stays(lora_model):
    model = lora_model(moved=True)
    importance = made_map(model)
    move_factors(model, 0.05)
    weights = adapted_weights(model)
    penalty = QuadraticPenalty(weights, importance, lam=1.0)
    before = [w.a.clone() for w in weights]
    penalty.pull({id(w.parameter_b): 0.1 for w in weights})
    assert all(torch.equal(w.a, a) for w, a in zip(weights, before, strict=True))


def test_unknown_applications_are_refused():
    with pytest.raises(ALoRAError, match="application='proximal' is unknown: use one of 'coupled', 'decoupled'"):
        ALoRAConfig(application="proximal")


@pytest.mark.parametrize("settings", [{"application": "decoupled"}, {"budget": 0.1}])
def test_optimizers_with_weights_of_their_own_are_refused(lora_model, token_data, training_arguments, settings):
    model = lora_model()
    args = training_arguments(optim="schedule_free_adamw")
    with pytest.raises(ALoRAError, match="schedule_free_adamw.*keeps averages of the weights beside them"):
        ALoRATrainer(
            model, args, train_dataset=token_data(), importance=made_map(model), alora=ALoRAConfig(**settings),
            probe_dataset=token_data(2),
        )  # fmt: skip
