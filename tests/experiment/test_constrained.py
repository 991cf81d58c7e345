"""OPLoRA, CLoRA and OSF: trainings whose movement keeps out of some directions, or is meant to."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, OSFConfig, get_peft_model

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods import get_method
from alora_trainer.experiment.methods.clora import CLoRAOptions, orthonormal
from alora_trainer.experiment.methods.oplora import OPLoRAOptions
from alora_trainer.trainer.mixin import ALoRATrainer
from alora_trainer.weights.adapted import AdaptedWeight, adapted_weights
from tests.tiny_training import tiny_llama, token_rows, with_lora

# An optimizer that is not linear in the gradient, with decay, and clipping that is at work.
SETTINGS = {"learning_rate": 0.02, "weight_decay": 0.1, "max_grad_norm": 0.05, "max_steps": 3}


def adapted(**lora: Any) -> Any:
    return with_lora(tiny_llama(), target_modules=["q_proj", "v_proj", "down_proj"], **lora)


def collate(rows: list[Any]) -> dict[str, torch.Tensor]:
    return {key: torch.tensor([row[key] for row in rows]) for key in ("input_ids", "labels")}


def trained(trainer: Any, **resume: Any) -> list[AdaptedWeight]:
    trainer.train(**resume)
    return adapted_weights(trainer.model)


def leading(weight: AdaptedWeight, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    base = weight.layer.get_base_layer().weight.detach().double()
    left, values, right = torch.linalg.svd(base.T if weight.stored_transposed else base, full_matrices=False)
    return left[:, :k], values[:k], right[:k].T


# ---- OPLoRA ----


@pytest.fixture
def oplora(training_arguments: Any) -> Any:
    """`oplora(model, k=..., **arguments)`: its trainer."""

    def make(model: Any, k: int = 3, **arguments: Any) -> Any:
        return get_method("oplora").make_trainer(
            options=OPLoRAOptions(k=k), model=model, args=training_arguments(**(SETTINGS | arguments)),
            train_dataset=token_rows(), data_collator=collate,
        )  # fmt: skip

    return make


def in_the_forward_pass(model: Any, k: int) -> None:
    """``dW = s (1 - U U') B A (1 - V V')`` as written, on the inputs and the outputs of the adapter."""
    for weight in adapted_weights(model):
        u, _, v = (part.float() for part in leading(weight, k))
        weight.layer.lora_A["default"].register_forward_pre_hook(lambda _, x, v=v: (x[0] - x[0] @ v @ v.T,))
        weight.layer.lora_B["default"].register_forward_hook(lambda _, x, y, u=u: y - y @ u @ u.T)


def test_oplora_is_the_training_of_the_projected_movement(oplora: Any, training_arguments: Any) -> None:
    model = adapted(moved=True)
    reference = copy.deepcopy(model)
    in_the_forward_pass(reference, 3)
    expected = trained(
        ALoRATrainer(reference, training_arguments(**SETTINGS), train_dataset=token_rows(), data_collator=collate)
    )
    found = trained(oplora(model))
    for ours, theirs in zip(found, expected, strict=True):
        u, _, v = (part.float() for part in leading(theirs, 3))
        torch.testing.assert_close(ours.b, theirs.b - u @ (u.T @ theirs.b), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(ours.a, theirs.a - theirs.a @ v @ v.T, rtol=1e-3, atol=1e-5)
    assert not any(parameter._backward_hooks for parameter in model.parameters())


def test_the_leading_singular_triples_stay(oplora: Any) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=40, n_positions=32))
    transposed = get_peft_model(base, LoraConfig(r=3, target_modules=["c_attn", "mlp.c_proj"]))
    for model in (adapted(), transposed):
        for weight in trained(oplora(model, learning_rate=0.1)):
            u, values, v = leading(weight, 3)
            movement = weight.scaling * weight.b.double() @ weight.a.double()
            assert float(movement.norm()) > 0.01
            assert float((u.T @ movement).norm()) + float((movement @ v).norm()) < 1e-5 * float(movement.norm()) + 1e-6
            base_weight = weight.layer.get_base_layer().weight.detach().double()
            whole = (base_weight.T if weight.stored_transposed else base_weight) + movement
            torch.testing.assert_close(whole @ v, u * values, rtol=1e-4, atol=1e-5)


def test_oplora_resumes_to_the_same(oplora: Any, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 1}
    whole = trained(oplora(adapted(), **saving))
    again = trained(oplora(adapted(), **saving), resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))
    assert all(
        torch.equal(x, y)
        for a, b in zip(whole, again, strict=True)
        for x, y in zip((a.a, a.b), (b.a, b.b), strict=True)
    )


def test_oplora_refuses_what_would_leave_nothing(oplora: Any) -> None:
    with pytest.raises(ALoRAError, match="has 8 singular directions, and oplora keeps 6 and trains 3.*at most 5"):
        oplora(adapted(), k=6)
    with pytest.raises(ALoRAError, match="k=0 must be at least 1"):
        OPLoRAOptions(k=0)


# ---- CLoRA ----


@pytest.fixture
def clora(training_arguments: Any) -> Any:
    """`clora(model, options, **arguments)`: its trainer, on plain SGD."""

    def make(model: Any, options: CLoRAOptions, **arguments: Any) -> Any:
        plain = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, "max_steps": 1}
        return get_method("clora").make_trainer(
            options=options, model=model, args=training_arguments(**(plain | arguments)),
            train_dataset=token_rows(items=4), data_collator=collate,
        )  # fmt: skip

    return make


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_clora_is_its_loss_written_out(clora: Any, share: float) -> None:
    """One step over two micro-batches."""
    model = adapted(moved=True)
    expected = copy.deepcopy(model)
    found = trained(clora(model, CLoRAOptions(strength=0.05, share=share), gradient_accumulation_steps=2, seed=11))
    batch = collate(list(token_rows(items=4)))
    loss = expected(**batch).loss  # over all tokens of the step
    generator = torch.Generator().manual_seed(11)
    weights = adapted_weights(expected)
    before = [(weight.a.clone(), weight.b.clone()) for weight in weights]
    for weight in weights:
        rows, columns = weight.shape
        p, q = (orthonormal(size, share, generator).float() for size in (columns, rows))
        assert p.shape == (columns, columns * share) and q.shape == (rows, rows * share)
        if share == 1:
            loss = loss + 0.05 * (weight.parameter_a.square().sum() + weight.parameter_b.square().sum())
        else:
            within_a, within_b = weight.parameter_a @ p @ p.T, q @ q.T @ weight.parameter_b
            loss = loss + 0.05 * (within_a.square().sum() + within_b.square().sum())
    loss.backward()
    for weight, reference, (a, b) in zip(found, weights, before, strict=True):
        torch.testing.assert_close(a - weight.a, reference.parameter_a.grad, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(b - weight.b, reference.parameter_b.grad, rtol=1e-3, atol=1e-5)


def test_clora_draws_by_the_seed_and_refuses_what_is_out_of_range(clora: Any) -> None:
    options = CLoRAOptions(strength=0.05)
    first, again, other = (trained(clora(adapted(), options, seed=seed, data_seed=1))[0].a for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    p = orthonormal(7, 0.01, torch.Generator().manual_seed(0))
    assert p.shape == (7, 1) and float(p.norm()) == pytest.approx(1)
    for settings, message in (
        ({"strength": -1.0}, "strength=-1.0 must not be"),
        ({"share": 0.0}, "share=0.0 must lie"),
    ):
        with pytest.raises(ALoRAError, match=message):
            CLoRAOptions(**settings)


# ---- OSF ----


@pytest.mark.parametrize(
    ("rows", "columns", "optimizer", "rate", "share"),
    [
        (64, 64, torch.optim.AdamW, 2e-3, 0.32),
        (64, 128, torch.optim.AdamW, 2e-3, 0.27),
        (64, 64, torch.optim.SGD, 0.1, 2e-5),
        (64, 128, torch.optim.SGD, 0.1, 2e-5),
    ],
)
def test_how_much_of_osfs_movement_lies_in_the_frozen_directions(
    rows: int, columns: int, optimizer: Any, rate: float, share: float
) -> None:
    """As docs/methods/osf.md says: none under SGD, a good part under Adam, which rescales the projected gradient."""
    torch.manual_seed(0)
    model: Any = torch.nn.Sequential(
        torch.nn.Linear(columns, rows, bias=False), torch.nn.ReLU(), torch.nn.Linear(rows, 7)
    )
    before = model[0].weight.detach().clone()
    left, _, right = torch.linalg.svd(before, full_matrices=False)
    u, v = left[:, :32], right[:32]  # half of the smaller side
    adapter = get_peft_model(model, OSFConfig(target_modules=["0"], effective_rank=0.5))
    steps = optimizer([parameter for parameter in adapter.parameters() if parameter.requires_grad], lr=rate)
    inputs, labels = torch.randn(256, columns), torch.randint(0, 7, (256,))
    for _ in range(5):
        steps.zero_grad()
        torch.nn.functional.cross_entropy(adapter(inputs), labels).backward()
        steps.step()
    movement = model[0](torch.eye(columns)).detach().T - before
    free = movement - u @ (u.T @ movement)
    free = free - (free @ v.T) @ v
    found = float((movement - free).norm() / movement.norm())
    assert found == pytest.approx(share, abs=0.02) if share > 0.1 else found < 1e-3
