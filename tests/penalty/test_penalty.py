"""The penalty against autograd through the dense difference, alone and through whole training steps."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alora_trainer import ALoRAConfig, ALoRAError, ALoRATrainer, ImportanceMap
from alora_trainer.importance.kinds.formats import store
from alora_trainer.penalty import QuadraticPenalty
from alora_trainer.penalty.backends.blocked import blocked_penalty
from alora_trainer.weights import row_blocks
from alora_trainer.weights.adapted import adapted_weights
from alora_trainer.weights.reference import Reference
from alora_trainer.weights.steps import Factors, movement_factors
from alora_trainer.weights.theta import AdapterTheta
from tests.conftest import move_factors
from tests.older_libraries import skip_before


def made_map(model, seed=5, dtype=torch.float32) -> ImportanceMap:
    """Random importance with theta* at the model's present adapter."""
    generator = torch.Generator().manual_seed(seed)
    weights = adapted_weights(model)
    return ImportanceMap(
        {w.name: torch.rand(w.shape, generator=generator, dtype=torch.float64).to(dtype) for w in weights},
        AdapterTheta({w.name: Reference(w.a.clone(), w.b.clone(), w.scaling) for w in weights}),
    )


def dense_penalty(model, importance, *, lam, layer_weights="l2", normalize=False):
    """Eq. 16-18 written out in float64, with autograd's graph down to the model's factors."""
    names = list(importance)
    omega = {name: importance[name].double() for name in names}
    w = {name: torch.linalg.vector_norm(omega[name]) if layer_weights == "l2" else torch.tensor(1.0) for name in names}
    if normalize:
        mean = torch.cat([o.flatten() for o in omega.values()]).mean()
        omega = {name: o / mean for name, o in omega.items()}
        mean_w = torch.stack([x.double() for x in w.values()]).mean()
        w = {name: x / mean_w for name, x in w.items()}
    total = torch.zeros((), dtype=torch.float64)
    for weight in adapted_weights(model):
        reference = importance.reference[weight.name]
        theta = weight.scaling * weight.parameter_b.double().flatten(1) @ weight.parameter_a.double().flatten(1)
        theta_star = reference.scaling * reference.b.double() @ reference.a.double()
        total = total + w[weight.name] * (omega[weight.name] * (theta - theta_star) ** 2).sum()
    return lam * total


def relative(got, expected) -> float:
    got, expected = got.detach(), expected.detach()
    return float((got.double() - expected.double()).norm() / expected.double().norm())


@settings(max_examples=40, deadline=None)
@given(
    m=st.integers(1, 33), n=st.integers(1, 29), r=st.integers(1, 6), reference_r=st.integers(1, 6),
    scaling=st.floats(0.1, 8), block=st.integers(1, 200), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_blocked_penalty_equals_autograd(m, n, r, reference_r, scaling, block, seed):
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    omega, a, b = rand(m, n).square(), rand(r, n), rand(m, r)
    a_star, b_star = rand(reference_r, n), rand(m, reference_r)
    left, right = torch.cat([b * scaling, b_star * -1.5], 1), torch.cat([a, a_star])
    a_leaf, b_leaf = a.clone().requires_grad_(), b.clone().requires_grad_()
    expected = (omega * (scaling * b_leaf @ a_leaf - 1.5 * b_star @ a_star) ** 2).sum()
    expected.backward()
    original, row_blocks.BLOCK_ELEMENTS = row_blocks.BLOCK_ELEMENTS, block
    try:
        for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 2e-5)):
            drift = Factors(left.to(dtype), right.to(dtype))
            result = blocked_penalty(store(omega.to(dtype)), drift, a.to(dtype), b.to(dtype), scaling)
            assert relative(result.value, expected.detach()) < tolerance
            assert (result.gradient_a.double() - a_leaf.grad).norm() <= tolerance * (a_leaf.grad.norm() + 1e-6) * 10
            assert (result.gradient_b.double() - b_leaf.grad).norm() <= tolerance * (b_leaf.grad.norm() + 1e-6) * 10
    finally:
        row_blocks.BLOCK_ELEMENTS = original


def test_movement_factors_do_not_cancel():
    """A movement of 1e-6 of the weights keeps float32's full precision."""
    torch.manual_seed(0)
    a, b = torch.randn(4, 50), torch.randn(60, 4)
    a_after, b_after = a * (1 + 1e-6 * torch.randn_like(a)), b * (1 + 1e-6 * torch.randn_like(b))
    exact = b_after.double() @ a_after.double() - b.double() @ a.double()
    factors = movement_factors(a, b, a_after, b_after, 1.0)
    assert relative(factors.left @ factors.right, exact) < 1e-5
    assert relative(b_after @ a_after - b @ a, exact) > 1e-2


CASES = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "rank pattern": {"rank_pattern": {"q_proj": 5}, "alpha_pattern": {"v_proj": 11}},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
}


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("layer_weights", ["l2", "none"])
@pytest.mark.parametrize("case", CASES)
def test_penalty_of_a_model_equals_dense_autograd(lora_model, case, layer_weights, normalize):
    model = lora_model(moved=True, **CASES[case])
    importance = made_map(model)
    move_factors(model, 0.05)
    penalty = QuadraticPenalty(
        adapted_weights(model), importance, lam=0.7, layer_weights=layer_weights, normalize=normalize
    )
    step = penalty.evaluate()
    expected = dense_penalty(model, importance, lam=0.7, layer_weights=layer_weights, normalize=normalize)
    expected.backward()
    assert relative(step.value, expected.detach()) < 1e-6
    for weight in adapted_weights(model):
        for parameter, gradient in zip(
            (weight.parameter_a, weight.parameter_b), step.gradients[weight.name], strict=True
        ):
            assert relative(gradient, parameter.grad.flatten(1)) < 1e-6


def test_conv1d_orientation(token_data, training_arguments):
    """GPT-2 stores its weights transposed; importance and penalty are in (out_features, in_features) all the same."""
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    base = GPT2LMHeadModel(
        GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=40, n_positions=32, bos_token_id=0, eos_token_id=0)
    )
    model = get_peft_model(base, LoraConfig(r=3, target_modules=["c_attn"], fan_in_fan_out=True))
    recorder = ALoRATrainer(model, training_arguments(), train_dataset=token_data(), alora=ALoRAConfig(record="path"))
    recorder.train()
    omega = recorder.importance["transformer.h.0.attn.c_attn"]
    assert omega.shape == (48, 16)
    move_factors(model, 0.05)
    weight = adapted_weights(model)[0]
    delta = weight.layer.get_delta_weight("default").T.double()
    reference = recorder.importance.reference[weight.name]
    expected = (omega.double() * (delta - reference.scaling * reference.b.double() @ reference.a.double()) ** 2).sum()
    penalty = QuadraticPenalty([weight], recorder.importance, lam=1.0, layer_weights="none", normalize=False)
    assert relative(penalty.evaluate().value, expected) < 1e-6


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("batches", [4, 3], ids=["whole window", "tail window"])
def test_one_training_step_moves_by_loss_and_penalty(lora_model, token_data, training_arguments, accumulation, batches):
    """One SGD step of learning rate 1: the movement is the gradient of the data loss plus that of the penalty, once."""
    model = lora_model(moved=True)
    importance = made_map(model)
    move_factors(model, 0.05)
    rows = batches * 2 if accumulation == 4 else 2
    data = token_data(items=rows)
    settings = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, "max_steps": 1}
    plain, held = copy.deepcopy(model), copy.deepcopy(model)
    args = training_arguments(gradient_accumulation_steps=accumulation, **settings)
    ALoRATrainer(plain, args, train_dataset=data).train()
    config = ALoRAConfig(lam=0.3, normalize=False)
    trainer = ALoRATrainer(held, args, train_dataset=data, importance=importance, alora=config)
    trainer.train()
    loss = dense_penalty(model, importance, lam=0.3)
    loss.backward()
    expected = float(loss.detach())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            difference = plain.get_parameter(name) - held.get_parameter(name)
            # Differences of parameters of order 1 keep about 1e-7 of absolute precision.
            torch.testing.assert_close(difference, parameter.grad, rtol=1e-4, atol=1e-6)
    logged = trainer.state.log_history[0]
    assert logged["penalty"] == pytest.approx(expected, rel=1e-5)
    assert logged["loss"] == pytest.approx(logged["ce_loss"] + logged["penalty"], rel=1e-5)
    assert logged["penalty_ratio"] == pytest.approx(logged["penalty"] / logged["ce_loss"], rel=1e-5)


def test_loss_that_the_trainer_divides_is_compensated(lora_model, token_data, training_arguments):
    """A user's own compute_loss with a per-batch mean (loss_is_scaled_for_ga = False) gets the penalty once, too."""
    skip_before("transformers", "5.20", "earlier ones do not know loss_is_scaled_for_ga")

    class MeanLoss(ALoRATrainer):
        loss_is_scaled_for_ga = False

    model = lora_model(moved=True)
    importance = made_map(model)
    move_factors(model, 0.05)
    data = token_data(items=8)
    args = training_arguments(
        optim="sgd", learning_rate=1.0, max_grad_norm=0.0, max_steps=1, gradient_accumulation_steps=4
    )
    plain, held = copy.deepcopy(model), copy.deepcopy(model)
    MeanLoss(plain, args, train_dataset=data).train()
    MeanLoss(held, args, train_dataset=data, importance=importance, alora=ALoRAConfig(lam=0.3, normalize=False)).train()
    dense_penalty(model, importance, lam=0.3).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            difference = plain.get_parameter(name) - held.get_parameter(name)
            torch.testing.assert_close(difference, parameter.grad, rtol=1e-4, atol=1e-6)


def test_trajectory_does_not_depend_on_accumulation(lora_model, token_data, training_arguments):
    base = lora_model(moved=True)
    importance = made_map(base)
    results = []
    for batch, accumulation in ((8, 1), (2, 4)):
        model = copy.deepcopy(base)
        args = training_arguments(
            per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, max_steps=5, learning_rate=1e-2
        )
        config = ALoRAConfig(lam=0.5)
        trainer = ALoRATrainer(model, args, train_dataset=token_data(40), importance=importance, alora=config)
        trainer.train()
        results.append((model, [log["penalty"] for log in trainer.state.log_history if "penalty" in log]))
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-3)
    assert results[0][1][-1] > 0
    for (name, a), (_, b) in zip(results[0][0].named_parameters(), results[1][0].named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=name)


def test_evaluation_is_the_data_loss_alone(lora_model, token_data, training_arguments):
    model = lora_model(moved=True)
    importance = made_map(model)
    move_factors(model, 0.05)
    data = token_data()
    expected = ALoRATrainer(copy.deepcopy(model), training_arguments(), eval_dataset=data).evaluate()["eval_loss"]
    args = training_arguments(eval_strategy="steps", eval_steps=1, max_steps=1, learning_rate=0.0)
    trainer = ALoRATrainer(
        model, args, train_dataset=data, eval_dataset=data, importance=importance, alora=ALoRAConfig(lam=10.0)
    )
    trainer.train()
    evaluated = next(log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log)
    assert evaluated == pytest.approx(expected, rel=1e-6)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("optim", ["sgd", "adamw_torch"])
def test_lambda_zero_is_plain_lora_bit_for_bit(lora_model, token_data, training_arguments, optim):
    from transformers import Trainer

    settings = {"optim": optim, "gradient_accumulation_steps": 2, "max_steps": 5}
    plain = lora_model(moved=True, lora_dropout=0.1)
    ours = copy.deepcopy(plain)
    importance = made_map(ours)
    Trainer(plain, training_arguments(**settings), train_dataset=token_data()).train()
    config = ALoRAConfig(lam=0.0)
    trainer = ALoRATrainer(
        ours, training_arguments(**settings), train_dataset=token_data(), importance=importance, alora=config
    )
    trainer.train()
    for (name, a), (_, b) in zip(plain.named_parameters(), ours.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert trainer.state.log_history[0]["drift"] > 0


def test_a_large_lambda_keeps_the_weights_at_the_reference(lora_model, token_data, training_arguments):
    drifts = {}
    for lam in (0.0, 1e4):
        model = lora_model(moved=True)
        importance = made_map(model)
        args = training_arguments(max_steps=60, learning_rate=2e-3, lr_scheduler_type="linear")
        trainer = ALoRATrainer(
            model, args, train_dataset=token_data(), importance=importance, alora=ALoRAConfig(lam=lam)
        )
        trainer.train()
        drifts[lam] = [log["drift"] for log in trainer.state.log_history if "drift" in log][-1]
    assert drifts[1e4] < 0.05 * drifts[0.0]


def test_drift_is_logged_for_every_layer_if_asked_for(lora_model, token_data, training_arguments):
    model = lora_model(moved=True)
    importance = made_map(model)
    start = {weight.name: weight.scaling * weight.b @ weight.a for weight in adapted_weights(model)}
    settings = ALoRAConfig(lam=0.1, log_drift=True)
    trainer = ALoRATrainer(
        model, training_arguments(), train_dataset=token_data(), importance=importance, alora=settings
    )
    trainer.train()
    last = [log for log in trainer.state.log_history if "drift" in log][-1]
    assert last["drift"] == pytest.approx(sum(v**2 for k, v in last.items() if k.startswith("drift/")) ** 0.5, rel=1e-5)
    for weight in adapted_weights(model):
        moved = (weight.scaling * weight.b @ weight.a - start[weight.name]).norm()
        assert last[f"drift/{weight.name}"] == pytest.approx(float(moved), rel=1e-4)


def test_settings_that_cannot_work_are_refused(lora_model, token_data, training_arguments):
    with pytest.raises(ALoRAError, match="layer_weights='l1'"):
        ALoRAConfig(layer_weights="l1")
    with pytest.raises(ALoRAError, match="lam=-1"):
        ALoRAConfig(lam=-1)
    with pytest.raises(ALoRAError, match="record='si'"):
        ALoRAConfig(record="si")
    with pytest.raises(ALoRAError, match="needs an importance map"):
        ALoRATrainer(lora_model(), training_arguments(), train_dataset=token_data(), alora=ALoRAConfig(lam=0.5))
    with pytest.raises(ALoRAError, match="load_best_model_at_end"):
        ALoRATrainer(
            lora_model(),
            training_arguments(load_best_model_at_end=True, eval_strategy="steps", save_strategy="steps"),
            train_dataset=token_data(),
            eval_dataset=token_data(),
            alora=ALoRAConfig(record="path"),
        )


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "log8", "factored"])
def test_a_map_in_any_format_protects(lora_model, token_data, training_arguments, storage):
    """The penalty of a compressed map is that of its decoded numbers, through the trainer."""
    model = lora_model(moved=True)
    importance = made_map(model).convert(storage)
    move_factors(model, 0.05)
    expected = float(dense_penalty(model, importance, lam=0.3).detach())
    config = ALoRAConfig(lam=0.3, normalize=False)
    trainer = ALoRATrainer(
        model, training_arguments(max_steps=1), train_dataset=token_data(), importance=importance, alora=config
    )
    trainer.train()
    assert trainer.state.log_history[0]["penalty"] == pytest.approx(expected, rel=1e-4)


def test_the_setting_says_how_importance_is_held(lora_model, token_data, training_arguments):
    """`storage` converts the map that is given: the training is that of a map converted beforehand, bit for bit."""
    model = lora_model(moved=True)
    importance = made_map(model)
    trained = []
    for source, storage in ((importance, "log8"), (importance.convert("log8"), None), (importance, None)):
        own = copy.deepcopy(model)
        trainer = ALoRATrainer(
            own, training_arguments(), train_dataset=token_data(), importance=source, alora=ALoRAConfig(storage=storage)
        )
        assert trainer.importance.storage == (storage or source.storage)
        trainer.train()
        trained.append({name: p for name, p in own.named_parameters() if p.requires_grad})
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])
    assert not all(torch.equal(trained[0][name], trained[2][name]) for name in trained[0])
    with pytest.raises(ALoRAError, match="storage='int8' is unknown: use one of 'float32'"):
        ALoRAConfig(storage="int8")


def test_a_backend_can_be_forced_and_must_fit(lora_model, token_data, training_arguments, caplog):
    model = lora_model(moved=True)
    importance = made_map(model)
    with pytest.raises(ALoRAError, match="backend='cuda' is unknown"):
        ALoRAConfig(backend="cuda")
    for backend in ("dense", "blocked"):
        with caplog.at_level("INFO", logger="alora_trainer"):
            ALoRATrainer(
                copy.deepcopy(model), training_arguments(max_steps=1), train_dataset=token_data(), importance=importance,
                alora=ALoRAConfig(backend=backend),
            ).train()  # fmt: skip
        assert f"computed by {backend}" in caplog.text
    misfit = ALoRATrainer(
        model, training_arguments(), train_dataset=token_data(), importance=importance,
        alora=ALoRAConfig(backend="gram"),
    )  # fmt: skip
    with pytest.raises(ALoRAError, match="stored as float32, not factored"):
        misfit.train()
