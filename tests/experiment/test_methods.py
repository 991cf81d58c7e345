"""Every method on a known case."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods import METHODS, Method, get_method
from alora_trainer.experiment.methods.corda import CordaOptions
from alora_trainer.experiment.methods.general_text import GeneralBatches
from alora_trainer.experiment.methods.i_lora import ILoRAOptions, ILoRATrainer, MovingAverage, consistency_loss
from alora_trainer.experiment.methods.kl_anchor import (
    KLAnchorOptions,
    KLAnchorTrainer,
    distillation_loss,
    without_adapter,
)
from alora_trainer.experiment.methods.lora_pro import (
    LoRAProOptions,
    LoRAProTrainer,
    corrected_gradients,
    solve_sylvester,
)
from alora_trainer.experiment.methods.method import MethodOptions
from alora_trainer.experiment.methods.mlp_only import mlp_layers
from alora_trainer.experiment.methods.replay import ReplayOptions, ReplayTrainer
from alora_trainer.experiment.run.start import attach_adapter
from alora_trainer.importance.controls import control_map
from alora_trainer.penalty import QuadraticPenalty
from alora_trainer.trainer.mixin import ALoRATrainer
from alora_trainer.weights.adapted import adapted_weights


def collate(rows: list[Any]) -> dict[str, torch.Tensor]:
    return {key: torch.tensor([row[key] for row in rows]) for key in ("input_ids", "labels")}


@pytest.fixture
def trained(
    lora_model: Callable[..., Any], token_data: Callable[..., Any], training_arguments: Callable[..., Any]
) -> Callable[..., Any]:
    """`trained(kind, options, **arguments)`: a trainer of that class after its training, on plain SGD."""

    def train(kind: Any, options: Any = None, model: Any = None, **arguments: Any) -> Any:
        own = {} if options is None else {"options": options}
        if options is not None and not isinstance(options, LoRAProOptions):
            own["general"] = token_data(items=10, seed=8)
        defaults = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0}
        trainer = kind(
            model if model is not None else lora_model(moved=True),
            training_arguments(**(defaults | arguments)),
            train_dataset=token_data(),
            data_collator=collate,
            **own,
        )
        trainer.train()
        return trainer

    return train


def factors(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}


# ---- the table ----


def test_a_method_with_a_penalty_has_something_to_hold_by() -> None:
    with pytest.raises(ALoRAError, match="needs starts_from='recorded'"):
        Method("x", "", starts_from="fresh", importance="uniform")
    kinds = {name: get_method(name).measured for name in ("ewclora", "ewclora_batch", "ewclora_true", "kfac")}
    assert [(one.squares, one.labels) for one in kinds.values() if one and not one.is_curvature] == [
        ("sample", "text"),
        ("batch", "text"),
        ("sample", "sampled"),
    ]
    assert kinds["kfac"] is not None and kinds["kfac"].kind == "kronecker"
    assert {m.name for m in METHODS.values() if m.needs_general_text} == {
        *("replay", "kl_anchor", "i_lora", "corda_kpm", "lora_null", "lora_null_frozen", "sc_lora"),
        *("kfac_replay", "self_replay", "self_kl", "lalora"),
    }


# ---- controls ----


def test_controls(trained: Callable[..., Any], lora_model: Callable[..., Any]) -> None:
    from alora_trainer.trainer.config import ALoRAConfig

    def recorder(*args: Any, **kwargs: Any) -> Any:
        return ALoRATrainer(*args, alora=ALoRAConfig(record="path", lam=0.0), **kwargs)

    trainer = trained(recorder)
    recorded, model = trainer.importance, trainer.model
    shuffled, again = (control_map("shuffled", recorded, seed=1) for _ in range(2))
    other = control_map("shuffled", recorded, seed=2)
    even, uniform = control_map("even", recorded), control_map("uniform", recorded)
    for name, omega in recorded.items():
        assert torch.equal(shuffled[name].flatten().sort().values, omega.flatten().sort().values)
        assert torch.equal(shuffled[name], again[name]) and not torch.equal(shuffled[name], other[name])
        assert not torch.equal(shuffled[name], omega)
        assert even[name].unique().numel() == 1 and torch.equal(uniform[name], torch.ones_like(omega))
        assert even.layer_norms[name] == pytest.approx(recorded.layer_norms[name], rel=1e-5)
    # Plain L2: lambda times the squared distance from theta*.
    weights = adapted_weights(model)
    penalty = QuadraticPenalty(weights, uniform, lam=0.7, layer_weights="none")
    start = {w.name: w.scaling * w.b @ w.a for w in weights}
    with torch.no_grad():
        for w in weights:
            w.parameter_b.add_(0.1)
    distance = sum(float((w.scaling * w.b @ w.a - start[w.name]).square().sum()) for w in weights)
    assert float(penalty.evaluate().value) == pytest.approx(0.7 * distance, rel=1e-4)
    assert uniform.nbytes < recorded.nbytes


# ---- trainings that see general text ----


def test_batches_are_known_by_their_number() -> None:
    rows = [{"input_ids": [i], "labels": [i]} for i in range(5)]
    one, other = (GeneralBatches(rows, 2, 3, collate) for _ in range(2))
    drawn = [one[k]["input_ids"].flatten().tolist() for k in range(5)]
    assert sorted(sum(drawn[:3], [])[:5]) == [0, 1, 2, 3, 4] and sorted(sum(drawn, [])) == sorted([0, 1, 2, 3, 4] * 2)
    assert [other[k]["input_ids"].flatten().tolist() for k in (4, 0, 2)] == [drawn[4], drawn[0], drawn[2]]


class Watched(ReplayTrainer):
    """Keeps the batches of the domain that it trained on."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.__dict__.setdefault("watched", []).append({key: value.clone() for key, value in inputs.items()})
        return super().compute_loss(model, inputs, *args, **kwargs)


def test_replay_is_the_sum_of_two_means(trained: Callable[..., Any], lora_model: Callable[..., Any]) -> None:
    """One SGD step over three micro-batches against the two losses written out."""
    options = ReplayOptions(fraction=1.0, weight=0.5)
    trainer = trained(Watched, options, max_steps=1, gradient_accumulation_steps=3, learning_rate=1.0)
    model = lora_model(moved=True)
    start = factors(model)
    tokens = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in trainer.watched)
    loss = torch.zeros(())
    for number, batch in enumerate(trainer.watched):
        logits = model(input_ids=batch["input_ids"]).logits[:, :-1].flatten(0, 1)
        labels = batch["labels"][:, 1:].flatten()
        loss = loss + torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum") / tokens
        loss = loss + 0.5 * model(**trainer._batches[number]).loss / 3
    loss.backward()
    moved = factors(trainer.model)
    assert len(trainer.watched) == 3
    for name, p in model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(start[name] - moved[name], p.grad, rtol=1e-4, atol=1e-6)


def test_no_general_text_is_plain_lora(trained: Callable[..., Any]) -> None:
    plain = factors(trained(ALoRATrainer).model)
    for kind, options in (
        (ReplayTrainer, ReplayOptions(weight=0.0)),
        (KLAnchorTrainer, KLAnchorOptions(weight=0.0)),
        (ILoRATrainer, ILoRAOptions(weight=0.0, result="trained")),
    ):
        other = factors(trained(kind, options).model)
        assert all(torch.equal(other[name], value) for name, value in plain.items())


def test_distillation_is_zero_at_the_base_and_kl_elsewhere(lora_model: Callable[..., Any]) -> None:
    model = lora_model()  # B = 0: the adapter does nothing yet
    model.train()
    ids = torch.arange(2, 14).view(2, 6)
    with without_adapter(model):
        assert not model.training
        teacher = model(input_ids=ids).logits
    assert model.training
    labels = ids.clone()
    labels[0] = -100
    assert float(distillation_loss(model(input_ids=ids).logits, teacher, labels, 1.0)) == pytest.approx(0, abs=1e-6)
    student = torch.randn(teacher.shape, generator=torch.Generator().manual_seed(0))
    p, q = (teacher[1] / 2).softmax(-1), (student[1] / 2).softmax(-1)
    expected = 4 * (p * (p / q).log()).sum(-1).mean()
    assert float(distillation_loss(student, teacher, labels, 2.0)) == pytest.approx(float(expected), rel=1e-5)


def test_the_anchor_holds(
    trained: Callable[..., Any], token_data: Callable[..., Any], lora_model: Callable[..., Any]
) -> None:
    batch = collate(list(token_data(items=10, seed=8)))
    labels = batch.pop("labels")[:, 1:]

    def distance(model: Any) -> float:
        model.eval()
        with without_adapter(model):
            teacher = model(**batch).logits[:, :-1]
        with torch.no_grad():
            return float(distillation_loss(model(**batch).logits[:, :-1], teacher, labels, 1.0))

    settings = {"max_steps": 12, "learning_rate": 0.5}
    free = distance(trained(ALoRATrainer, model=lora_model(), **settings).model)
    held = distance(
        trained(KLAnchorTrainer, KLAnchorOptions(fraction=1.0, weight=50.0), model=lora_model(), **settings).model
    )
    assert held < free / 2


def test_the_moving_average(lora_model: Callable[..., Any], tmp_path: Path) -> None:
    model = lora_model(moved=True)
    (name, parameter), *_ = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    average = MovingAverage(model, 0.6)
    first = parameter.detach().clone()
    values = [first + step for step in (1.0, 2.0, 3.0)]
    expected = first
    for step, value in enumerate(values, start=1):
        parameter.data = value
        average.update(step)
        keep = min(1 - 1 / (step + 1), 0.6)
        expected = keep * expected + (1 - keep) * value
    torch.testing.assert_close(average.values[name], expected)
    with average.in_place():
        torch.testing.assert_close(parameter.data, expected)
    assert torch.equal(parameter.data, values[-1])
    average.save(tmp_path)
    other = MovingAverage(model, 0.6)
    other.load(tmp_path)
    assert torch.equal(other.values[name], average.values[name])
    with pytest.raises(ALoRAError, match="has no whole average_adapter.safetensors"):
        other.load(tmp_path / "none")
    hidden = (torch.ones(1, 2, 3), torch.zeros(1, 2, 3))
    assert float(consistency_loss(hidden, (torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)))) == 0.5


def test_i_lora_resumes_to_the_same_average(trained: Callable[..., Any], lora_model: Callable[..., Any]) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2}
    whole = trained(ILoRATrainer, ILoRAOptions(decay=0.5), **settings)
    again = trained(ILoRATrainer, ILoRAOptions(decay=0.5), max_steps=2, **settings)
    again.args.max_steps = 4
    again.train(resume_from_checkpoint=str(Path(again.args.output_dir) / "checkpoint-2"))
    end = factors(again.model)
    assert all(torch.equal(end[name], value) for name, value in factors(whole.model).items())
    last = factors(trained(ILoRATrainer, ILoRAOptions(decay=0.5, result="trained")).model)
    assert any(not torch.equal(end[name], value) for name, value in last.items())


# ---- LoRA-Pro ----


def test_the_correction_is_the_nearest_gradient_that_factors_can_make() -> None:
    """In the span of what A and B can move, the equivalent gradient is the orthogonal projection of W's own."""
    generator = torch.Generator().manual_seed(0)
    a, b, g = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((3, 9), (7, 3), (7, 9)))
    s, options = 4.0, LoRAProOptions(damping=1e-14)
    original = (s * b.T @ g, s * g @ a.T)
    onto_b, onto_a = b @ torch.linalg.pinv(b), torch.linalg.pinv(a) @ a
    nearest = onto_b @ g + (torch.eye(7, dtype=g.dtype) - onto_b) @ g @ onto_a
    found = {}
    for solution in ("sylvester", "zero"):
        new_a, new_b = corrected_gradients(a, b, *original, s, replace(options, solution=solution))
        torch.testing.assert_close(s * (b @ new_a + new_b @ a), nearest, rtol=1e-8, atol=1e-9)
        found[solution] = (new_a, new_b)

    def distance(x: torch.Tensor) -> float:
        new_a, new_b = found["zero"][0] + x @ a, found["zero"][1] - b @ x
        return float((new_a - original[0]).square().sum() + (new_b - original[1]).square().sum())

    best = (found["sylvester"][0] - found["zero"][0]) @ torch.linalg.pinv(a)
    for _ in range(5):
        noise = torch.randn(3, 3, generator=generator, dtype=torch.float64)
        assert distance(best) < distance(best + 1e-3 * noise)


def test_sylvester() -> None:
    generator = torch.Generator().manual_seed(1)
    p, q = (m @ m.T for m in torch.randn(2, 4, 4, generator=generator, dtype=torch.float64))
    c = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    x = solve_sylvester(p, q, c)
    torch.testing.assert_close(p @ x + x @ q, c)


def test_lora_pro_moves_w_down_its_own_gradient(trained: Callable[..., Any], lora_model: Callable[..., Any]) -> None:
    """The first step from B = 0: B moves by -eta G A' (A A')^-1 / s, so W by -eta times G projected on A's rows."""
    model = lora_model(target_modules=["q_proj"])
    start = copy.deepcopy(model)
    trainer = trained(LoRAProTrainer, LoRAProOptions(), model=model, max_steps=1, learning_rate=0.01)
    batch = next(iter(trainer.get_train_dataloader()))
    layers = {w.name: w for w in adapted_weights(start)}
    bases = [w.layer.get_base_layer().weight.requires_grad_(True) for w in layers.values()]
    gradients = torch.autograd.grad(start(**batch).loss, bases)
    for (name, before), gradient, after in zip(layers.items(), gradients, adapted_weights(model), strict=True):
        assert name == after.name and torch.allclose(after.a, before.a, atol=1e-7)
        onto_a = torch.linalg.pinv(before.a) @ before.a
        torch.testing.assert_close(after.scaling * after.b @ after.a, -0.01 * gradient @ onto_a, rtol=1e-3, atol=1e-7)


# ---- other adapters ----


def test_the_mlp_alone(lora_model: Callable[..., Any]) -> None:
    base = lora_model().unload()
    assert {name.rsplit(".", 1)[1] for name in mlp_layers(base)} == {"gate_proj", "up_proj", "down_proj"}
    with pytest.raises(ALoRAError, match="finds no MLP"):
        mlp_layers(torch.nn.Sequential(torch.nn.Linear(2, 2)))


def test_corda_starts_as_the_base_and_is_saved_as_plain_lora(
    lora_model: Callable[..., Any], token_data: Callable[..., Any], tmp_path: Path
) -> None:
    from peft import LoraConfig, PeftModel

    base = lora_model().unload().eval()
    original = copy.deepcopy(base)
    ids = torch.arange(2, 14).view(2, 6)
    expected = original(input_ids=ids).logits
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    adapter = attach_adapter(
        get_method("corda_kpm"), MethodOptions(CordaOptions(samples=5)), base, config,
        seed=0, folder=tmp_path, general=token_data(), collate=collate,
    )  # fmt: skip
    model = adapter.model.eval()
    torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=1e-3, atol=1e-4)
    assert not torch.equal(
        adapted_weights(model)[0].layer.get_base_layer().weight, original.model.layers[0].self_attn.q_proj.weight
    )
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.mul_(1.3)
    moved = model(input_ids=ids).logits
    adapter.save(tmp_path / "adapter")
    again = PeftModel.from_pretrained(original, str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(again(input_ids=ids).logits, moved, rtol=1e-3, atol=1e-4)
    assert again.peft_config["default"].r == 4
