"""The recorder against a dense float64 reference: an ordinary training loop that writes every matrix out."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import SequentialSampler

from alora_trainer import ALoRAConfig, ALoRAError, ALoRATrainer
from alora_trainer.importance.recording import estimators


class InOrder(ALoRATrainer):
    """Takes the data in their order, so that the reference below needs no sampler."""

    def _get_train_sampler(self, *args, **kwargs):
        return SequentialSampler(self.train_dataset)


def dense_projection(a, b, ga, gb):
    """The least-squares gradient of W from B'G and GA', by solving for all its elements at once."""
    ridges = [
        torch.eye(len(a), dtype=a.dtype) * estimators._RIDGE * gram.diagonal().mean() for gram in (a @ a.T, b.T @ b)
    ]
    onto_a = torch.linalg.lstsq(a @ a.T + ridges[0], a, driver="gelsd").solution
    onto_b = torch.linalg.lstsq(b.T @ b + ridges[1], b.T, driver="gelsd").solution
    return gb @ onto_a + onto_b.T @ ga - onto_b.T @ (b.T @ gb) @ onto_a


def dense_reference(model, data, *, estimator, optimizer, lr, clip, accumulation, steps, batch, xi, schedule=None):
    """Omega by name, straight from the equations: dense matrices, float64, plain autograd."""
    model = copy.deepcopy(model).double()
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }
    factors = {
        name: (layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.scaling["default"])
        for name, layer in layers.items()
    }
    trainable = [p for p in model.parameters() if p.requires_grad]
    if optimizer == "sgd":
        stepper = torch.optim.SGD(trainable, lr=lr)
    else:
        stepper = torch.optim.AdamW(trainable, lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    start = {name: (s * b @ a).detach() for name, (a, b, s) in factors.items()}
    w = {name: torch.zeros_like(start[name]) for name in factors}
    rows = [(torch.tensor(r["input_ids"]), torch.tensor(r["labels"])) for r in data]
    for t in range(steps):
        eta = lr * schedule(t) if schedule else lr
        for group in stepper.param_groups:
            group["lr"] = eta
        window = [rows[(t * batch * accumulation + i) % len(rows)] for i in range(batch * accumulation)]
        ids, labels = (torch.stack(part) for part in zip(*window, strict=True))
        logits = model(input_ids=ids).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        stepper.zero_grad()
        loss.backward()
        before = {
            name: (a.detach().clone(), b.detach().clone(), a.grad.clone(), b.grad.clone())
            for name, (a, b, _) in factors.items()
        }
        if clip:
            torch.nn.utils.clip_grad_norm_(trainable, clip)
        stepper.step()
        for name, (a, b, s) in factors.items():
            a0, b0, ga, gb = before[name]
            g = s * (gb @ a0 + b0 @ ga - eta * gb @ ga)
            if estimator == "projected":
                g = dense_projection(a0, b0, ga / s, gb / s)
            movement = -eta * g if estimator == "paper" else s * (b @ a - b0 @ a0).detach()
            w[name] -= g * movement
    return {
        name: w[name].clamp(min=0) / ((s * b @ a).detach().sub(start[name]).square() + xi)
        for name, (a, b, s) in factors.items()
    }


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("clip", [0.0, 0.05])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw_torch"])
@pytest.mark.parametrize("estimator", ["paper", "path", "projected"])
def test_recorded_importance_equals_the_dense_reference(
    lora_model, token_data, training_arguments, estimator, optimizer, clip, accumulation
):
    data = token_data(items=24)
    settings = {"lr": 0.03, "xi": 1e-3, "steps": 3}
    # The models compute their loss in float32 whatever their dtype, which bounds the agreement.
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 2e-3)):
        model = lora_model(dtype=dtype, moved=True)
        expected = dense_reference(
            model,
            data,
            estimator=estimator,
            optimizer=optimizer,
            clip=clip,
            accumulation=accumulation,
            batch=2,
            **settings,
        )
        args = training_arguments(
            optim=optimizer,
            max_grad_norm=clip,
            gradient_accumulation_steps=accumulation,
            learning_rate=settings["lr"],
            max_steps=settings["steps"],
        )
        trainer = InOrder(model, args, train_dataset=data, alora=ALoRAConfig(record=estimator, xi=settings["xi"]))
        trainer.train()
        assert set(trainer.importance) == set(expected)
        for name, omega in expected.items():
            assert omega.max() > 0
            error = (trainer.importance[name].double() - omega).norm() / omega.norm()
            assert error < tolerance, (name, dtype, float(error))


def test_a_changing_learning_rate_is_followed(lora_model, token_data, training_arguments):
    data, model = token_data(items=16), lora_model(dtype=torch.float64)
    expected = dense_reference(
        model,
        data,
        estimator="paper",
        optimizer="adamw",
        lr=0.03,
        clip=0.0,
        accumulation=1,
        steps=4,
        batch=2,
        xi=1e-3,
        schedule=lambda t: 1 - t / 4,
    )
    args = training_arguments(learning_rate=0.03, max_grad_norm=0.0, lr_scheduler_type="linear")
    trainer = InOrder(model, args, train_dataset=data, alora=ALoRAConfig(record="paper"))
    trainer.train()
    for name, omega in expected.items():
        torch.testing.assert_close(trainer.importance[name], omega, rtol=1e-4, atol=1e-6)


def test_paper_equals_path_under_plain_sgd(lora_model, token_data, training_arguments):
    maps = {}
    for estimator in ("paper", "path"):
        args = training_arguments(optim="sgd", max_grad_norm=0.0)
        trainer = InOrder(
            lora_model(dtype=torch.float64), args, train_dataset=token_data(), alora=ALoRAConfig(record=estimator)
        )
        trainer.train()
        maps[estimator] = trainer.importance
    for name, omega in maps["paper"].items():
        torch.testing.assert_close(maps["path"][name], omega, rtol=1e-9, atol=1e-14)


def test_recording_does_not_change_the_training(lora_model, token_data, training_arguments):
    from transformers import Trainer

    plain, recorded = lora_model(), lora_model()
    Trainer(plain, training_arguments(), train_dataset=token_data()).train()
    ALoRATrainer(recorded, training_arguments(), train_dataset=token_data(), alora=ALoRAConfig(record="path")).train()
    for (name, a), (_, b) in zip(plain.named_parameters(), recorded.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("accumulation", [1, 2])
def test_recording_while_protecting_leaves_the_penalty_out_of_the_gradient(
    lora_model, token_data, training_arguments, accumulation
):
    """With SGD and no learning to speak of, a huge penalty must not show in the recorded gradients."""
    data = token_data()
    first = ALoRATrainer(
        lora_model(dtype=torch.float64), training_arguments(), train_dataset=data, alora=ALoRAConfig(record="path")
    )
    first.train()
    results = []
    for lam in (0.0, 50.0):
        model = copy.deepcopy(first.model)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.01
        args = training_arguments(
            optim="sgd", learning_rate=1e-12, max_steps=1, gradient_accumulation_steps=accumulation
        )
        trainer = InOrder(
            model, args, train_dataset=data, importance=first.importance, alora=ALoRAConfig(record="paper", lam=lam)
        )
        trainer.train()
        results.append({name: trainer.importance[name] - first.importance[name] for name in first.importance})
    for name in results[0]:
        assert results[0][name].max() > 0
        torch.testing.assert_close(results[1][name], results[0][name], rtol=1e-3, atol=1e-18)


def test_resumed_recording_equals_an_uninterrupted_one(lora_model, token_data, training_arguments, tmp_path):
    data = token_data()
    whole = ALoRATrainer(
        lora_model(),
        training_arguments(output_dir=str(tmp_path / "whole")),
        train_dataset=data,
        alora=ALoRAConfig(record="path"),
    )
    whole.train()
    args = training_arguments(output_dir=str(tmp_path / "cut"), save_strategy="steps", save_steps=2)
    ALoRATrainer(lora_model(), args, train_dataset=data, alora=ALoRAConfig(record="path")).train()
    resumed = ALoRATrainer(lora_model(), args, train_dataset=data, alora=ALoRAConfig(record="path"))
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-2"))
    assert resumed.importance.info.steps == whole.importance.info.steps == 4
    assert resumed.importance.info.tokens == whole.importance.info.tokens
    for name, omega in whole.importance.items():
        assert torch.equal(resumed.importance[name], omega)


def test_resuming_from_a_checkpoint_without_recording_is_refused(lora_model, token_data, training_arguments, tmp_path):
    args = training_arguments(output_dir=str(tmp_path), save_strategy="steps", save_steps=2)
    ALoRATrainer(lora_model(), args, train_dataset=token_data()).train()
    trainer = ALoRATrainer(lora_model(), args, train_dataset=token_data(), alora=ALoRAConfig(record="path"))
    with pytest.raises(ALoRAError, match="without a recording"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_different_learning_rates_of_a_and_b_are_refused(lora_model, token_data, training_arguments):
    model = lora_model()
    groups = [
        {"params": [p for n, p in model.named_parameters() if f"lora_{factor}" in n], "lr": lr}
        for factor, lr in (("A", 1e-3), ("B", 1e-2))
    ]
    trainer = ALoRATrainer(
        model,
        training_arguments(),
        train_dataset=token_data(),
        optimizers=(torch.optim.SGD(groups, lr=1e-3), None),
        alora=ALoRAConfig(record="path"),
    )
    with pytest.raises(ALoRAError, match="different learning rates"):
        trainer.train()


def test_infinite_gradients_stop_the_recording(lora_model, token_data, training_arguments):
    model = lora_model()
    model.base_model.model.model.layers[1].self_attn.q_proj.lora_A["default"].weight.register_hook(
        lambda g: g * float("inf")
    )
    trainer = ALoRATrainer(model, training_arguments(), train_dataset=token_data(), alora=ALoRAConfig(record="path"))
    with pytest.raises(ALoRAError, match="layers.1.self_attn.q_proj is not finite"):
        trainer.train()
