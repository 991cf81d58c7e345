"""Lambda from the gradients' balance, from a schedule, and from a budget on a general probe."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from alora_trainer import ALoRAConfig, ALoRAError, ALoRATrainer
from alora_trainer.penalty.strength.budget import CONFIDENCE, RANGE, BudgetController, Rise
from alora_trainer.penalty.strength.probe import Probe
from alora_trainer.penalty.strength.schedule import schedule_factor
from tests.conftest import move_factors
from tests.penalty.test_penalty import made_map
from tests.tiny_training import quiet_arguments, tiny_llama, token_rows, with_lora


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
        values.append(self.parts[0].penalty.lam)
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
    from alora_trainer.penalty import QuadraticPenalty
    from alora_trainer.weights.adapted import adapted_weights

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


# ---- the budget is kept ----


@pytest.fixture(scope="module")
def learned_once(tmp_path_factory):
    general, domain = token_rows(16, 8, seed=21), token_rows(24, 8, seed=22)
    model = with_lora(tiny_llama(), target_modules="all-linear", r=4)
    args = quiet_arguments(
        str(tmp_path_factory.mktemp("learned")), max_steps=40, learning_rate=0.02, per_device_train_batch_size=8
    )
    recorder = ALoRATrainer(model, args, train_dataset=general, alora=ALoRAConfig(record="path"))
    recorder.train()
    return model, recorder.importance, general, domain


@pytest.fixture
def learned(learned_once):
    """A model that has learned general text, its importance, that text, and other text to learn."""
    model, *rest = learned_once
    return copy.deepcopy(model), *rest


@pytest.mark.parametrize("application", ["coupled", "decoupled"])
@pytest.mark.parametrize("budget", [0.005, 0.02])
def test_the_budget_is_kept_at_the_end(held, learned, training_arguments, budget, application):
    model, importance, general, domain = learned

    def loss(of):
        args = training_arguments(per_device_eval_batch_size=16)
        return ALoRATrainer(of, args, eval_dataset=general).evaluate()["eval_loss"]

    before = loss(copy.deepcopy(model))
    common = {"importance": importance, "probe": general, "data": domain, "max_steps": 40, "learning_rate": 0.02}
    free = held({"lam": 0.0}, model=copy.deepcopy(model), **common)
    free.train()
    trainer = held(
        {"budget": budget, "probe_steps": 2, "application": application}, model=copy.deepcopy(model), **common
    )
    trainer.train()
    rises, errors = logged(trainer, "probe_rise"), logged(trainer, "probe_rise_error")
    assert logged(free, "probe_rise")[-1] > 2 * budget
    assert rises[-1] + CONFIDENCE * errors[-1] <= budget
    assert rises[-1] > 0.1 * budget  # it was used, not avoided
    # The log tells what the weights that were left do.
    assert loss(trainer.model) / before - 1 == pytest.approx(rises[-1], abs=1e-5)
    # And something was learned.
    losses = logged(trainer, "ce_loss")
    assert sum(losses[-5:]) < sum(losses[:5])


def test_the_final_pull_is_no_stronger_than_needed(learned):
    """Of the strengths that keep the budget, it takes one near the weakest; the weights are as left but for that one step."""
    from alora_trainer.penalty import QuadraticPenalty
    from alora_trainer.penalty.strength.final_pull import FinalPull
    from alora_trainer.weights.adapted import adapted_weights

    model, importance, _, _ = learned
    weights = adapted_weights(model)
    move_factors(model, 0.3)
    penalty = QuadraticPenalty(weights, importance, lam=0.0)
    left = [(w.a.clone(), w.b.clone()) for w in weights]

    def measure():
        return Rise(sum(norm**2 for norm in penalty.drift().values()), 0.0)

    start = measure()
    assert FinalPull(penalty, start.value).keep_budget(start, measure) == {"final_pull": 0.0}
    goal = start.value / 3
    found = FinalPull(penalty, goal).keep_budget(start, measure)
    assert measure().value == found["probe_rise"] <= goal
    for w, (a, b) in zip(weights, left, strict=True):
        w.a.copy_(a), w.b.copy_(b)
    penalty.lam = found["final_pull"] / 1.6
    penalty.pull({id(p): 1.0 for w in weights for p in (w.parameter_a, w.parameter_b)})
    assert measure().value > goal


def test_a_budget_that_cannot_be_kept_is_said(learned, caplog):
    from alora_trainer.penalty import QuadraticPenalty
    from alora_trainer.penalty.strength.final_pull import FinalPull
    from alora_trainer.weights.adapted import adapted_weights

    model, importance, _, _ = learned
    penalty = QuadraticPenalty(adapted_weights(model), importance, lam=0.0)
    with caplog.at_level("WARNING", logger="alora_trainer"):
        found = FinalPull(penalty, 0.01).keep_budget(Rise(0.5, 0.0), lambda: Rise(0.4, 0.0))
    assert "the budget is not kept: general loss rose by 40.00%" in caplog.text
    assert found["probe_rise"] == 0.4


def test_lambda_goes_up_and_down_with_the_excess_and_stays_bounded():
    controller = BudgetController(0.01, 2.0)
    before = controller.lam
    assert controller.update(Rise(0.02, 0.0)) > before
    top = controller.lam
    assert controller.update(Rise(0.001, 0.0)) < top
    assert top / before > controller.lam / controller.update(Rise(0.0, 0.0))  # faster up than down
    for rise, limit in ((10.0, 2 * RANGE), (-10.0, 2 / RANGE)):
        for _ in range(100):
            controller.update(Rise(rise, 0.0))
        assert controller.lam == pytest.approx(limit)
    # A rise that is still growing counts as what it will be; the error of the probe counts against it.
    steady, growing, noisy = BudgetController(0.01, 1.0), BudgetController(0.01, 1.0), BudgetController(0.01, 1.0)
    for controller, first in ((steady, 0.006), (growing, 0.0), (noisy, 0.006)):
        controller.update(Rise(first, 0.0))
    starts = [c.lam for c in (steady, growing, noisy)]
    steady.update(Rise(0.006, 0.0)), growing.update(Rise(0.006, 0.0)), noisy.update(Rise(0.006, 0.004))
    factors = [c.lam / start for c, start in zip((steady, growing, noisy), starts, strict=True)]
    assert factors[0] < 1 < factors[1] and factors[2] > 1


def test_the_probes_rise_and_its_error():
    """By hand, and against repeated draws of sequences."""
    generator = torch.Generator().manual_seed(0)
    then = (torch.rand(200, generator=generator) * 10 + 5).tolist()
    now = [x * (1.02 + 0.05 * float(torch.randn((), generator=generator))) for x in then]

    def rise_of(numbers):
        probe = Probe([{"input_ids": [1, 2, 3]}] * len(numbers), 1)
        probe.set_start([then[i] for i in numbers])
        return probe.rise([now[i] for i in numbers])

    whole = rise_of(range(200))
    assert whole.value == pytest.approx(sum(now) / sum(then) - 1)
    draws = [rise_of(torch.randint(0, 200, (200,), generator=generator).tolist()).value for _ in range(300)]
    assert whole.error == pytest.approx(float(torch.tensor(draws).std()), rel=0.15)


@pytest.mark.parametrize(
    ("alora", "probe", "error"),
    [
        ({"budget": 0.01}, None, "budget=0.01 needs a probe_dataset"),
        ({"lam": 0.1}, [{"text": "a"}], "row 0 of the probe_dataset has no input_ids"),
        ({"lam": 0.1}, [{"input_ids": [3]}], "no token to predict"),
        ({"lam": 0.1}, [{"input_ids": [3, 4], "labels": [3]}], "2 input_ids and 1 labels"),
    ],
)
def test_probes_that_cannot_be(held, alora, probe, error):
    with pytest.raises(ALoRAError, match=error):
        held(alora, probe=probe)


def test_a_probe_without_a_map_and_a_best_model_with_a_budget(lora_model, token_data, training_arguments, held):
    with pytest.raises(ALoRAError, match="watched while protecting"):
        ALoRATrainer(lora_model(), training_arguments(), train_dataset=token_data(), probe_dataset=token_data(2))
    with pytest.raises(ALoRAError, match="weights that may be above the budget"):
        model = lora_model()
        ALoRATrainer(
            model, training_arguments(load_best_model_at_end=True, eval_strategy="steps", save_strategy="steps"),
            train_dataset=token_data(), eval_dataset=token_data(), importance=made_map(model),
            alora=ALoRAConfig(budget=0.1), probe_dataset=token_data(2),
        )  # fmt: skip


def test_a_checkpoint_without_its_state_is_refused(held, lora_model, token_data, tmp_path):
    base = lora_model(moved=True)
    importance = made_map(base)
    plain = held(
        {"lam": 0.1}, model=copy.deepcopy(base), importance=importance, max_steps=2, save_strategy="steps", save_steps=1
    )
    plain.train()
    again = held({"lam": "auto"}, model=copy.deepcopy(base), importance=importance, max_steps=4)
    with pytest.raises(ALoRAError, match="has no state of lambda"):
        again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))
