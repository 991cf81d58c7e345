"""LaLoRA's Fisher information of the factors and its penalty, on known cases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods import get_method
from alora_trainer.experiment.methods.lalora import LaLoRAOptions, sampled_loss
from alora_trainer.weights.adapted import adapted_weights


def collate(rows: list[Any]) -> dict[str, torch.Tensor]:
    return {key: torch.tensor([row[key] for row in rows]) for key in ("input_ids", "labels")}


@pytest.fixture
def trainer(
    lora_model: Callable[..., Any], token_data: Callable[..., Any], training_arguments: Callable[..., Any]
) -> Callable[..., Any]:
    """`trainer(options, model, **arguments)`: LaLoRA's trainer on plain SGD, which keeps its batches in `watched`."""

    def make(options: LaLoRAOptions, model: Any = None, **arguments: Any) -> Any:
        watched: list[Any] = []

        def kept(rows: list[Any]) -> dict[str, torch.Tensor]:
            watched.append(collate(rows))
            return collate(rows)

        made = get_method("lalora").make_trainer(
            options=options,
            general=token_data(items=10, seed=8),
            model=model if model is not None else lora_model(moved=True),
            args=training_arguments(**({"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0} | arguments)),
            train_dataset=token_data(),
            data_collator=kept,
        )
        made.watched = watched
        return made

    return make


def measured(made: Any) -> list[Any]:
    """What the part holds by, as it is before the first step."""
    (part,) = made.parts
    part.before_training(made, [], resumes=False)
    return list(part.held)


def factors(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}


def test_the_diagonal_is_the_mean_squared_gradient_of_sequences(trainer: Callable[..., Any]) -> None:
    made = trainer(LaLoRAOptions(samples=4))
    held, model = measured(made), made.model.eval()
    rows, generator = made.parts[0]._general, torch.Generator().manual_seed(made.args.seed)
    sums = [torch.zeros_like(factor.weight, dtype=torch.float64) for factor in held]
    tokens = 0
    for place in (0, 2, 5, 7):  # evenly spaced over ten
        model.zero_grad()
        ids = torch.tensor([rows[place]["input_ids"]])
        loss, number = sampled_loss(model(input_ids=ids).logits, generator)
        loss.backward()
        tokens += number
        for total, factor in zip(sums, held, strict=True):
            total += factor.weight.grad.double().square()
    assert len(held) == 2 * len(list(adapted_weights(model))) and tokens == 4 * 7
    for total, factor in zip(sums, held, strict=True):
        torch.testing.assert_close(factor.elements.double(), total / tokens, rtol=1e-4, atol=1e-10)


def test_the_kronecker_form_is_of_single_tokens(trainer: Callable[..., Any]) -> None:
    """Dense: the mean outer product of every token's inputs, and of its gradients by the layer's outputs."""
    made = trainer(LaLoRAOptions(samples=2, curvature="kronecker"))
    held, model = measured(made), made.model.eval()
    rows, generator = made.parts[0]._general, torch.Generator().manual_seed(made.args.seed)
    inputs: dict[int, torch.Tensor] = {}
    outputs: dict[int, torch.Tensor] = {}

    def keep(layer: Any, given: Any, result: torch.Tensor) -> None:
        inputs[id(layer)], outputs[id(layer)] = given[0], result
        result.retain_grad()

    handles = [factor.layer.register_forward_hook(keep) for factor in held]
    ids = torch.tensor([rows[0]["input_ids"], rows[5]["input_ids"]])
    sampled_loss(model(input_ids=ids).logits, generator)[0].backward()
    for handle in handles:
        handle.remove()
    for factor in held:
        x = inputs[id(factor.layer)].detach().flatten(0, 1).double()
        h = outputs[id(factor.layer)].grad.flatten(0, 1).double()
        s, g = (sum(torch.outer(row, row) for row in rows_) for rows_ in (x, h))
        s, g = s / len(x), g / (2 * 7)
        torch.testing.assert_close(factor.inputs.double(), s, rtol=1e-4, atol=1e-8)
        torch.testing.assert_close(factor.outputs.double(), g, rtol=1e-4, atol=1e-8)
        with torch.no_grad():
            factor.weight.add_(0.1)
        moved = (factor.weight.detach() - factor.beginning).double().flatten()
        assert float(factor.form()) == pytest.approx(float(moved @ torch.kron(g, s) @ moved), rel=1e-3)


@pytest.mark.parametrize("curvature", ["diagonal", "kronecker"])
def test_three_steps_written_out(trainer: Callable[..., Any], lora_model: Callable[..., Any], curvature: str) -> None:
    made = trainer(LaLoRAOptions(strength=3.0, curvature=curvature, samples=5), max_steps=3)
    made.train()
    held, model = made.parts[0].held, lora_model(moved=True)
    begun, ours = factors(model), [p for w in adapted_weights(model) for p in (w.parameter_a, w.parameter_b)]
    first = [p.detach().clone() for p in ours]
    for batch in [one for one in made.watched if len(one["input_ids"]) == 2][:3]:
        logits = model(input_ids=batch["input_ids"]).logits[:, :-1].flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, batch["labels"][:, 1:].flatten(), ignore_index=-100)
        for parameter, start, factor in zip(ours, first, held, strict=True):
            d = parameter - start
            if curvature == "diagonal":
                loss = loss + 1.5 * (factor.elements * d * d).sum()
            else:
                loss = loss + 1.5 * torch.trace(d.T @ factor.outputs @ d @ factor.inputs)
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in ours:
                p -= 0.1 * p.grad
    assert any(not torch.equal(value, begun[name]) for name, value in factors(model).items())
    for name, value in factors(model).items():
        torch.testing.assert_close(factors(made.model)[name], value, rtol=1e-3, atol=1e-6)


def test_a_is_free_where_b_is_zero(trainer: Callable[..., Any], lora_model: Callable[..., Any]) -> None:
    made = trainer(LaLoRAOptions(samples=3), model=lora_model())
    weights = {id(w.layer.lora_B[w.adapter]) for w in adapted_weights(made.model)}
    held = measured(made)
    assert {id(factor.layer) for factor in held} == weights and all(factor.elements.any() for factor in held)


def test_it_resumes_with_the_same_curvature(trainer: Callable[..., Any]) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2}
    whole = trainer(LaLoRAOptions(strength=3.0, samples=4), **settings)
    whole.train()
    half = trainer(LaLoRAOptions(strength=3.0, samples=4), max_steps=2, **settings)
    half.train()
    again = trainer(LaLoRAOptions(strength=3.0, samples=4), **settings)
    again.train(resume_from_checkpoint=str(Path(half.args.output_dir) / "checkpoint-2"))
    assert all(torch.equal(factors(again.model)[name], value) for name, value in factors(whole.model).items())


def test_numbers_out_of_range() -> None:
    for wrong in ({"strength": -1.0}, {"curvature": "dense"}, {"samples": 0}):
        with pytest.raises(ALoRAError, match="must|unknown"):
            LaLoRAOptions(**wrong)
