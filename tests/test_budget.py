"""Lambda from the gradients' balance, from a schedule, and from a budget on a general probe."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from alora_trainer import ALoRAConfig, ALoRATrainer
from alora_trainer.penalty.strength import schedule_factor
from tests.test_penalty import made_map


def logged(trainer, key):
    return [log[key] for log in trainer.state.log_history if key in log]


@pytest.fixture
def held(lora_model, token_data, training_arguments):
    """`held(alora, model=None, train={}, **arguments)`: a trainer that protects, on a model at theta*."""

    def build(alora: dict, *, model=None, importance=None, probe=None, data=None, **arguments):
        model = model if model is not None else lora_model(moved=True)
        return ALoRATrainer(
            model,
            training_arguments(**arguments),
            train_dataset=data or token_data(),
            importance=importance or made_map(model),
            alora=ALoRAConfig(**alora),
            probe_dataset=probe,
        )

    return build


@pytest.mark.parametrize(
    ("schedule", "end", "expected"),
    [
        ("constant", 5.0, [1, 1, 1, 1, 1]),
        ("linear", 0.0, [1, 0.75, 0.5, 0.25, 0]),
        ("linear", 3.0, [1, 1.5, 2, 2.5, 3]),
        ("cosine", 0.0, [1, 0.853553, 0.5, 0.146447, 0]),
    ],
)
def test_schedules(held, schedule, end, expected):
    assert [schedule_factor(schedule, end, step, 5) for step in range(5)] == pytest.approx(expected, abs=1e-6)
    trainer = held({"lam": 2.0, "lam_schedule": schedule, "lam_end_factor": end, "layer_weights": "none"}, max_steps=5)
    values = []
    original = ALoRATrainer._before_optimizer_step

    def spy(self):
        values.append(self._protection.penalty.lam)
        original(self)

    trainer._before_optimizer_step = spy.__get__(trainer)
    trainer.train()
    assert values == pytest.approx([2 * x for x in expected], abs=1e-6)
    assert len(logged(trainer, "lam")) == 5


@pytest.mark.parametrize("application", ["coupled", "decoupled"])
def test_auto_balances_the_gradients(held, application):
    """Under SGD both applications see the same thing: the lambda at which |lambda g_penalty| is the free |g_data|."""
    trainer = held({"lam": "auto", "application": application}, max_steps=30, optim="sgd", learning_rate=0.05)
    trainer.train()
    lams = logged(trainer, "lam")
    assert lams[:2] == [0, 0] and lams[2] > 0  # the log entry of step 3 tells the lambda of step 4
    assert len(set(lams[2:])) == 1


def test_auto_is_the_ratio_of_the_norms(lora_model, token_data, training_arguments):
    from alora_trainer.adapted import adapted_weights
    from alora_trainer.penalty import QuadraticPenalty

    model = lora_model(moved=True)
    importance = made_map(model)
    free = copy.deepcopy(model)
    args = {"max_steps": 10, "optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0}
    # The first step alone is free: its gradient is its movement by the learning rate.
    before = {n: p.detach().clone() for n, p in free.named_parameters() if p.requires_grad}
    trainer = ALoRATrainer(free, training_arguments(**args | {"max_steps": 1}), train_dataset=token_data())
    trainer.train()
    data = math.sqrt(
        sum(float(((p - before[n]) / 0.05).square().sum()) for n, p in free.named_parameters() if n in before)
    )
    step = QuadraticPenalty(adapted_weights(free), importance, lam=1.0).evaluate()
    penalty = math.sqrt(sum(float(g.square().sum()) for pair in step.gradients.values() for g in pair))
    for application in ("coupled", "decoupled"):
        trainer = ALoRATrainer(
            copy.deepcopy(model), training_arguments(**args), train_dataset=token_data(), importance=importance,
            alora=ALoRAConfig(lam="auto", application=application),
        )  # fmt: skip
        trainer.train()
        assert logged(trainer, "lam")[0] == pytest.approx(data / penalty, rel=1e-4)


def test_probe_leaves_no_trace(held, lora_model, token_data, training_arguments):
    """Weights, dropout and order of data are bit for bit those of a training without it; its loss is evaluate()'s."""
    base = lora_model(moved=True, lora_dropout=0.2)
    importance = made_map(base)
    results = []
    for probe in (None, token_data(5, 9, seed=11)):
        model = copy.deepcopy(base)
        trainer = held({"lam": 0.5, "probe_steps": 2}, model=model, importance=importance, probe=probe, max_steps=5)
        trainer.train()
        results.append(model)
    for (name, p), (_, q) in zip(results[0].named_parameters(), results[1].named_parameters(), strict=True):
        assert torch.equal(p, q), name
    losses = logged(trainer, "probe_loss")
    assert len(losses) == 3  # after steps 2, 4 and the last
    check = ALoRATrainer(
        results[1], training_arguments(per_device_eval_batch_size=5), eval_dataset=token_data(5, 9, seed=11)
    )
    assert losses[-1] == pytest.approx(check.evaluate()["eval_loss"], rel=1e-5)


def test_budget_resumes_exactly(held, lora_model, token_data, tmp_path):
    base = lora_model(moved=True)
    importance = made_map(base)
    probe = token_data(6, 10, seed=12)
    settings = {"budget": 0.002, "probe_steps": 2, "application": "decoupled"}
    common = {
        "importance": importance,
        "probe": probe,
        "data": token_data(40),
        "max_steps": 24,
        "save_strategy": "steps",
    }
    whole = held(settings, model=copy.deepcopy(base), save_steps=1, **common)
    whole.train()
    for checkpoint in (1, 7, 16):  # while lambda is found, and while it is steered
        again = held(settings, model=copy.deepcopy(base), save_steps=100, **common)
        again.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{checkpoint}"))
        assert logged(again, "lam") == logged(whole, "lam")
        assert logged(again, "probe_rise") == logged(whole, "probe_rise")
        for (name, p), (_, q) in zip(whole.model.named_parameters(), again.model.named_parameters(), strict=True):
            assert torch.equal(p, q), name
    assert len(set(logged(whole, "lam"))) > 5
