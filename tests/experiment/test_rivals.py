"""The simple rivals on known cases: replay in small shares and its control, held to the base on the domain's own items, L2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods import get_method
from alora_trainer.experiment.methods.asft import ASFTOptions, weighted_cross_entropy
from alora_trainer.experiment.methods.base_kl import KLDomainOptions
from alora_trainer.experiment.methods.general_text import GeneralBatches
from alora_trainer.experiment.methods.kl_anchor import KLAnchorOptions
from alora_trainer.experiment.methods.l2_init import L2InitOptions, squared_movement
from alora_trainer.experiment.methods.replay import ReplayOptions
from alora_trainer.experiment.methods.self_replay import SelfReplayOptions
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.run.dependencies import training
from alora_trainer.experiment.run.whole_recipe import run_recipe
from alora_trainer.weights.adapted import adapted_weights
from tests.tiny_recipe import write_all


def collate(rows: list[Any]) -> dict[str, torch.Tensor]:
    return {key: torch.tensor([row[key] for row in rows]) for key in ("input_ids", "labels")}


@pytest.fixture
def trainer(
    lora_model: Callable[..., Any], token_data: Callable[..., Any], training_arguments: Callable[..., Any]
) -> Callable[..., Any]:
    """`trainer(method, options, **arguments)`: the method's trainer, on plain SGD, which keeps its batches in `watched`."""

    def make(name: str, options: Any = None, **arguments: Any) -> Any:
        method, watched = get_method(name), []

        def kept(rows: list[Any]) -> dict[str, torch.Tensor]:
            watched.append(collate(rows))
            return collate(rows)

        defaults = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0}
        made = method.make_trainer(
            options=options,
            general=token_data(items=10, seed=8) if method.needs_general_text else None,
            model=lora_model(moved=True),
            args=training_arguments(**(defaults | arguments)),
            train_dataset=token_data(),
            data_collator=kept,
        )
        made.watched = watched
        return made

    return make


def factors(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}


def cross_entropies(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Of every token that is predicted."""
    logits, labels = model(input_ids=batch["input_ids"]).logits[:, :-1], batch["labels"][:, 1:]
    return -logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0][labels != -100]


def divergences(model: Any, base: Any, batch: dict[str, torch.Tensor], where: torch.Tensor) -> torch.Tensor:
    """KL(base || model) of the predictions of the tokens `where`, written out."""
    with torch.no_grad():
        p = base(input_ids=batch["input_ids"]).logits[:, :-1].double().softmax(-1)
    q = model(input_ids=batch["input_ids"]).logits[:, :-1].double().softmax(-1)
    return (p * (p / q).log()).sum(-1)[where]


def check_one_step(made: Any, model: Any, loss: torch.Tensor, rate: float) -> None:
    """That one SGD step of the trainer went down this loss's gradient."""
    start, moved = factors(model), factors(made.model)
    loss.backward()
    for name, p in model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close((start[name] - moved[name]) / rate, p.grad, rtol=2e-4, atol=2e-6)


# ---- replay in small shares ----


@pytest.mark.parametrize("fraction", [0.01, 0.02, 0.05, 0.1, 1.0])
def test_a_small_share_is_kept_over_the_training(fraction: float) -> None:
    options, rows = ReplayOptions(fraction=fraction, spread=True), [{"input_ids": [i], "labels": [i]} for i in range(7)]
    batches = GeneralBatches(rows, lambda number: options.rows_before(number, 16), 3, collate)
    drawn = [batches[number] for number in range(500)]
    sizes = [len(batch["input_ids"]) if batch else 0 for batch in drawn]
    assert sum(sizes) == pytest.approx(fraction * 16 * 500, abs=1) and max(sizes) == options.rows(16)
    assert max(sizes) - min(sizes) <= 1  # as even as whole rows can be
    seen = torch.cat([batch["input_ids"].flatten() for batch in drawn if batch]).tolist()
    assert all(sorted(seen[turn : turn + 7]) == list(range(7)) for turn in range(0, len(seen) - 6, 7))  # none is lost
    assert ReplayOptions(fraction=fraction).rows(16) == max(1, round(16 * fraction))  # as it was without `spread`


def test_a_micro_batch_without_general_text_is_plain(trainer: Callable[..., Any]) -> None:
    options = ReplayOptions(fraction=0.25, spread=True)  # of two rows: one beside every second micro-batch
    ends = {}
    for name, given, steps in (("replay", options, 1), ("lora", None, 1), ("replay", options, 2), ("lora", None, 2)):
        made = trainer(name, given, max_steps=steps)
        made.train()
        ends[name, steps] = factors(made.model)
    assert all(torch.equal(ends["replay", 1][name], value) for name, value in ends["lora", 1].items())
    assert any(not torch.equal(ends["replay", 2][name], value) for name, value in ends["lora", 2].items())


def test_padding_is_replay_of_the_domain(trainer: Callable[..., Any], lora_model: Callable[..., Any]) -> None:
    """One SGD step over three micro-batches against the losses written out."""
    made = trainer("padding", ReplayOptions(fraction=1.0, weight=0.5), max_steps=1, gradient_accumulation_steps=3)
    made.train()
    model, (domain, more) = lora_model(moved=True), (made.watched[0:3], [made._batches[number] for number in range(3)])
    known = {tuple(row) for row in made.train_dataset["input_ids"]}
    assert all(tuple(row) in known for batch in more for row in batch["input_ids"].tolist())
    loss = torch.cat([cross_entropies(model, batch) for batch in domain]).mean()
    loss = loss + 0.5 * torch.stack([cross_entropies(model, batch).mean() for batch in more]).mean()
    check_one_step(made, model, loss, 0.1)


@pytest.mark.parametrize(
    ("name", "options", "steps"),
    [
        ("replay", ReplayOptions(fraction=1.0, equal_work=True), 10),
        ("replay", ReplayOptions(fraction=0.25, spread=True, equal_work=True), 16),
        ("padding", ReplayOptions(fraction=1.0, equal_work=True), 10),
        ("kl_anchor", KLAnchorOptions(fraction=0.75, spread=True, equal_work=True), 10),
        ("replay", ReplayOptions(fraction=1.0), 20),
    ],
)
def test_equal_work_makes_fewer_steps(name: str, options: Any, steps: int, trainer: Callable[..., Any]) -> None:
    """Rows of one length, so that the tokens are in proportion to rows; distilling takes a third of a pass more."""
    assert trainer(name, options, max_steps=20).args.max_steps == steps


def test_equal_work_of_epochs(trainer: Callable[..., Any]) -> None:
    made = trainer("replay", ReplayOptions(fraction=1.0, equal_work=True), max_steps=-1, num_train_epochs=3)
    assert made.args.num_train_epochs == 1.5


# ---- on the domain's own items ----


@pytest.mark.parametrize("answers", [False, True])
def test_kl_on_the_domains_prompts(trainer: Callable[..., Any], lora_model: Callable[..., Any], answers: bool) -> None:
    """One SGD step over three micro-batches against cross-entropy and divergence written out, the answers masked."""
    options = KLDomainOptions(weight=0.7, answers=answers)
    made = trainer("kl_domain", options, max_steps=1, gradient_accumulation_steps=3)
    made.train()
    model, base, batches = lora_model(moved=True), lora_model().unload(), made.watched[:3]
    loss = torch.cat([cross_entropies(model, batch) for batch in batches]).mean().double()
    for batch in batches:
        prompt = batch["labels"][:, 1:] == -100
        loss = loss + 0.7 * divergences(model, base, batch, torch.ones_like(prompt) if answers else prompt).mean() / 3
    check_one_step(made, model, loss, 0.1)
    assert "base_kl" in made.state.log_history[0]


def test_kl_domain_needs_prompts(trainer: Callable[..., Any], token_data: Callable[..., Any]) -> None:
    plain = trainer("kl_domain", KLDomainOptions(weight=0.0))
    plain.train()
    other = trainer("lora")
    other.train()
    assert all(torch.equal(factors(plain.model)[name], value) for name, value in factors(other.model).items())
    data = token_data()
    everything = data.map(lambda row: {"labels": row["input_ids"]})
    make = get_method("kl_domain").make_trainer
    settings = {"model": plain.model, "args": plain.args, "train_dataset": everything, "data_collator": collate}
    with pytest.raises(ALoRAError, match=r"set domain\.loss_on to answer"):
        make(options=KLDomainOptions(), **settings)
    make(options=KLDomainOptions(answers=True), **settings)
    for wrong in ({"weight": -1.0}, {"temperature": 0.0}):
        with pytest.raises(ALoRAError, match="must"):
            KLDomainOptions(**wrong)


@pytest.mark.parametrize("kl", [0.0, 0.4])
def test_asft(trainer: Callable[..., Any], lora_model: Callable[..., Any], kl: float) -> None:
    """One SGD step over two micro-batches; a token counts by its own probability, which is no part of the gradient."""
    made = trainer("asft", ASFTOptions(kl=kl), max_steps=1, gradient_accumulation_steps=2)
    made.train()
    model, base, batches = lora_model(moved=True), lora_model().unload(), made.watched[:2]
    losses = torch.cat([cross_entropies(model, batch) for batch in batches]).double()
    loss = (torch.exp(-losses).detach() * losses).mean()
    for batch in batches:
        loss = loss + kl * divergences(model, base, batch, batch["labels"][:, 1:] != -100).mean() / 2
    check_one_step(made, model, loss, 0.1)


def test_the_weighted_loss_is_minus_the_probability_in_its_gradient() -> None:
    """``d(sg(p) * -log p) = -dp``: what is trained is the mean probability itself."""
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[0, 3, -100, 6, 2], [1, -100, -100, 4, 4]])
    weighted_cross_entropy({"logits": logits}, labels).backward()
    other = logits.detach().clone().requires_grad_(True)
    kept = labels[:, 1:] != -100
    p = other[:, :-1].softmax(-1).gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0][kept]
    (-p.mean()).backward()
    torch.testing.assert_close(logits.grad, other.grad, rtol=1e-5, atol=1e-7)


# ---- L2 towards the beginning ----


def test_squared_movement() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, a0, b0 = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((3, 9), (7, 3)) * 2)
    torch.testing.assert_close(squared_movement(a, b, a0, b0), (b @ a - b0 @ a0).square().sum())


@pytest.mark.parametrize("space", ["weights", "factors"])
def test_l2_towards_the_beginning(trainer: Callable[..., Any], lora_model: Callable[..., Any], space: str) -> None:
    """Three SGD steps against the loss written out, with the dense movement of every weight."""
    made = trainer("l2_init", L2InitOptions(strength=0.8, space=space), max_steps=3)
    made.train()
    model = lora_model(moved=True)
    begun = {w.name: (w.a.clone(), w.b.clone()) for w in adapted_weights(model)}
    for batch in made.watched[:3]:
        loss = cross_entropies(model, batch).mean()
        for w in adapted_weights(model):
            a, b, (a0, b0) = w.parameter_a, w.parameter_b, begun[w.name]
            distance = (a - a0).square().sum() + (b - b0).square().sum()
            loss = loss + 0.8 * (distance if space == "factors" else (w.scaling * (b @ a - b0 @ a0)).square().sum())
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p -= 0.1 * p.grad
    for name, value in factors(model).items():
        torch.testing.assert_close(factors(made.model)[name], value, rtol=1e-4, atol=1e-6)


def test_l2_init_resumes_with_the_same_beginning(trainer: Callable[..., Any]) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2}
    whole = trainer("l2_init", L2InitOptions(strength=0.8), **settings)
    whole.train()
    again = trainer("l2_init", L2InitOptions(strength=0.8), max_steps=2, **settings)
    again.train()
    fresh = trainer("l2_init", L2InitOptions(strength=0.8), **settings)
    fresh.train(resume_from_checkpoint=str(Path(again.args.output_dir) / "checkpoint-2"))
    assert all(torch.equal(factors(fresh.model)[name], value) for name, value in factors(whole.model).items())
    for wrong in ({"strength": -1.0}, {"space": "heads"}):
        with pytest.raises(ALoRAError, match="strength=|space="):
            L2InitOptions(**wrong)


# ---- in recipes ----


def test_new_options_leave_older_results_valid(tmp_path: Path) -> None:
    """What was trained before `spread` and `equal_work` were there has no word of them."""
    path = write_all(tmp_path)
    settings = training(load_recipe(path, {}), get_method("replay")).settings
    assert settings["options"] == {"fraction": 0.1, "weight": 1.0}
    spread = training(load_recipe(path, {"method_options.replay.spread": "true"}), get_method("replay")).settings
    assert spread["options"] == {"fraction": 0.1, "weight": 1.0, "spread": True}


def test_text_of_its_own_is_of_the_method_and_not_of_the_recipe(tmp_path: Path) -> None:
    path = write_all(tmp_path)
    one, other = (load_recipe(path, extra) for extra in ({}, {"general.train": "words_test.jsonl"}))
    digests = {
        name: [training(recipe, get_method(name)).digest for recipe in (one, other)] for name in ("replay", "self_kl")
    }
    assert digests["replay"][0] != digests["replay"][1] and digests["self_kl"][0] == digests["self_kl"][1]
    shorter = load_recipe(path, {"general.block_length": "8"})
    assert training(shorter, get_method("self_kl")).digest != digests["self_kl"][0]
    for override, message in (
        ({"method_options.self_replay.tokens": "0"}, r"method_options\.self_replay\.tokens=0 must be a whole number"),
        ({"method_options.self_replay.top_p": "2"}, r"method_options\.self_replay\.top_p=2\.0 must be above 0"),
    ):
        with pytest.raises(ALoRAError, match=message):
            load_recipe(path, override)
    with pytest.raises(ALoRAError, match="must be a list of texts"):
        SelfReplayOptions(prompts=[""])


def test_the_mlp_is_measured_where_it_is_held(tmp_path: Path) -> None:
    path = write_all(tmp_path)
    with pytest.raises(ALoRAError, match=r"set curvature\.weights to all"):
        run_recipe(load_recipe(path, {"methods": "kfac_mlp"}), output_dir=tmp_path / "run")
    assert not (tmp_path / "run" / "curvature_kronecker").exists()


def test_alora_from_the_base_is_the_partner_of_ewclora() -> None:
    ours, theirs = get_method("alora_base"), get_method("ewclora")
    assert {key: ours.alora[key] for key in ("start", "anchor")} == {
        key: theirs.alora[key] for key in ("start", "anchor")
    }
    assert ours.importance == "recorded"
