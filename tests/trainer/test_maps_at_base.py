"""Maps that were measured at the base weights: what they hold, what the settings mean for them, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from alora_trainer import ALoRAConfig, ALoRAError, ALoRATrainer, ImportanceMap
from alora_trainer.artefact.provenance import describe_measured
from alora_trainer.importance.kinds.elementwise import ELEMENTWISE
from alora_trainer.importance.origin import ImportanceInfo
from alora_trainer.trainer.protecting import Protecting
from alora_trainer.weights.adapted import adapted_weights
from alora_trainer.weights.full_weight import full_weights
from alora_trainer.weights.parameterization import Parameterization
from alora_trainer.weights.theta import BaseTheta
from tests.basis_map import KINDS, SHAPES, basis_map
from tests.importance.test_recorder import InOrder
from tests.tiny_map import make_map

ALL = [name.rpartition(".")[2] for name in SHAPES]


def of_base(model: Any, kind: str = "kronecker") -> ImportanceMap:
    """A map of this very model, with samples of its base weights."""
    made = basis_map(kind)
    samples = {weight.name: weight.base_sample() for weight in adapted_weights(model)}
    return ImportanceMap(
        {name: made.stored(name) for name in made},
        made.theta,
        base_samples=samples,
        info=ImportanceInfo(estimator=kind),
    )


def train(model: Any, data: Any, arguments: Any, importance: Any, **alora: Any) -> Any:
    trainer = InOrder(model, arguments, train_dataset=data, importance=importance, alora=ALoRAConfig(**alora))
    trainer.train()
    return trainer


def parameters(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def test_what_none_means_is_said_by_the_map() -> None:
    at_base, recorded = basis_map(), make_map()
    for importance, meant in (
        (at_base, ("bare", "base", "none")),
        (recorded, ("recorded", "reference", "l2")),
        (None, ("recorded", "reference", "l2")),
    ):
        config = ALoRAConfig(lam=0.5, xi=0.1).meant_for(importance)
        assert (config.start, config.anchor, config.layer_weights) == meant and (config.lam, config.xi) == (0.5, 0.1)
        assert config.meant_for(importance) == config
    unset = ALoRAConfig()
    assert (unset.start, unset.anchor, unset.layer_weights) == (None, None, None)
    assert unset.start_from.value == "recorded"
    given = ALoRAConfig(start="bare", anchor="reference", layer_weights="l2").meant_for(at_base)
    assert (given.start, given.anchor, given.layer_weights) == ("bare", "reference", "l2")
    full = ALoRAConfig(full_parameters=True).meant_for(at_base)
    assert (full.start, full.anchor, full.layer_weights) == ("recorded", "reference", "none")
    assert at_base.kind != ELEMENTWISE


@pytest.mark.parametrize("start", ["recorded", "merged"])
def test_an_adapter_that_there_is_not_is_refused(
    start: str, lora_model: Any, training_arguments: Any, token_data: Any
) -> None:
    model = lora_model()
    with pytest.raises(ALoRAError, match=f"start='{start}' needs the adapter .* start='bare' and anchor='base'"):
        ALoRATrainer(
            model,
            training_arguments(),
            train_dataset=token_data(),
            importance=of_base(lora_model(target_modules=ALL)),
            alora=ALoRAConfig(start=start),
        )
    importance = of_base(lora_model(target_modules=ALL))
    with pytest.raises(ALoRAError, match="no adapter to merge"):
        importance.check_model(model, start="merged")


@pytest.mark.parametrize("kind", KINDS)
def test_it_holds_a_fresh_adapter_of_any_rank_and_targets(
    kind: str, lora_model: Any, training_arguments: Any, token_data: Any
) -> None:
    """By default as with the three settings said; the penalty is that of the dense movement."""
    importance = of_base(lora_model(target_modules=ALL), kind)
    for rank, targets in ((2, ["v_proj", "down_proj"]), (5, ALL)):
        made = [lora_model(r=rank, target_modules=targets) for _ in range(3)]
        said = {"start": "bare", "anchor": "base", "layer_weights": "none"}
        first = train(made[0], token_data(), training_arguments(), importance, lam=0.2)
        second = train(made[1], token_data(), training_arguments(), importance, lam=0.2, **said)
        plain = train(made[2], token_data(), training_arguments(), importance, lam=0)
        own, other, free = (parameters(t.model) for t in (first, second, plain))
        assert all(torch.equal(own[name], other[name]) for name in own)
        assert any(not torch.equal(own[name], free[name]) for name in own)
        assert first.alora.resolved_protecting() == second.alora.resolved_protecting()
        assert first.publication().config.start == "bare"

        held = Protecting(importance, ALoRAConfig(lam=0.2))
        weights = adapted_weights(first.model)
        held.prepare(weights, steps=1)
        held.penalty.lam = 0.2
        mean = importance.total([w.name for w in weights]) / sum(w.shape[0] * w.shape[1] for w in weights)
        expected = 0.0
        for weight in weights:
            movement = (weight.scaling * weight.b @ weight.a).double()
            expected += float((importance.stored(weight.name).apply(movement) * movement).sum()) * 0.2 / mean
        assert float(held.penalty.evaluate().value) == pytest.approx(expected, rel=1e-4)


def test_check_model_needs_no_start_and_knows_another_base(lora_model: Any) -> None:
    importance = of_base(lora_model(target_modules=ALL))
    assert [w.name for w in importance.check_model(lora_model())] == [n for n in importance if "attn" in n]
    assert importance.check_model(lora_model(), start="bare")
    other = lora_model()
    for weight in adapted_weights(other):
        weight.layer.get_base_layer().weight.data.mul_(1.5)
    with pytest.raises(ALoRAError, match="other base weights"):
        importance.check_model(other)
    with pytest.raises(ALoRAError, match="no importance of .*gate_proj"):
        importance.check_model(lora_model(target_modules=["gate_proj"]))


def base_of(lora_model: Any) -> Any:
    """The base model itself, of which the map's weights alone train."""
    model = copy.deepcopy(lora_model(target_modules=ALL).unload())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(name.endswith(f"{each}.weight") for each in SHAPES))
    return model


def test_it_holds_the_model_itself(lora_model: Any, training_arguments: Any, token_data: Any) -> None:
    """One step of SGD on the plain weights, from a point off the base: the data's gradient, and 2 lambda M (W - W0)."""
    importance = of_base(lora_model(target_modules=ALL))
    base = base_of(lora_model)
    names = {weight.name for weight in full_weights(base)}
    assert names == set(importance)
    settings = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "max_steps": 2}
    plain, held = copy.deepcopy(base), copy.deepcopy(base)
    lam, mean = 0.01, importance.mean
    train(plain, token_data(), training_arguments(**settings), importance, lam=0, full_parameters=True)
    trainer = train(held, token_data(), training_arguments(**settings), importance, lam=lam, full_parameters=True)
    assert trainer.state.log_history[0]["penalty"] == 0  # the first step starts at theta*

    # By hand: the first step is that of the data alone, the second has the penalty at where it led.
    stepped = copy.deepcopy(base)
    train(
        stepped,
        token_data(),
        training_arguments(**settings | {"max_steps": 1}),
        importance,
        lam=0,
        full_parameters=True,
    )
    for name in names:
        w0, w1, free, own = (dict(m.named_parameters())[f"{name}.weight"] for m in (base, stepped, plain, held))
        moved = (w1 - w0).detach().double()
        expected = free.double() - 0.1 * lam * 2 / mean * importance.stored(name).apply(moved)
        torch.testing.assert_close(own.double(), expected, rtol=1e-4, atol=1e-7)
        assert not torch.equal(own, free)


def test_held_whole_weights_go_on_from_a_checkpoint_as_they_were(
    lora_model: Any, training_arguments: Any, token_data: Any, tmp_path: Any
) -> None:
    """The anchor is the base, and not what the checkpoint has."""
    importance, base = of_base(lora_model(target_modules=ALL)), base_of(lora_model)
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 0.01}
    whole = train(
        copy.deepcopy(base), token_data(), training_arguments(**settings), importance, lam=0.5, full_parameters=True
    )
    resumed = InOrder(
        copy.deepcopy(base),
        training_arguments(**settings),
        train_dataset=token_data(),
        importance=importance,
        alora=ALoRAConfig(lam=0.5, full_parameters=True),
    )
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-2")
    expected, found = parameters(whole.model), parameters(resumed.model)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert whole.state.log_history[-2]["drift"] == pytest.approx(resumed.state.log_history[-2]["drift"])
    with pytest.raises(ALoRAError, match="holds weights at those of the base model, and .* is another one"):
        train(whole.model, token_data(), training_arguments(), importance, lam=0.5, full_parameters=True)


def test_whole_weights_that_are_stored_another_way_are_refused(lora_model: Any) -> None:
    from transformers.pytorch_utils import Conv1D

    importance, model = of_base(lora_model(target_modules=ALL)), base_of(lora_model)
    attention = model.model.layers[0].self_attn
    attention.q_proj = Conv1D(16, 16)  # square: its shape would not tell
    attention.q_proj.bias.requires_grad_(False)
    with pytest.raises(ALoRAError, match="q_proj is a Conv1D, and of whole weights"):
        importance.check_model(model, parameterization=Parameterization.FULL)


def test_curvature_is_described_at_the_base_alone(lora_model: Any) -> None:
    model = lora_model(target_modules=ALL)
    made, weights = basis_map(), adapted_weights(model)
    omega = {weight.name: made.stored(weight.name) for weight in weights}
    facts = {"steps": 3, "tokens": 96, "seed": 0, "labels": "text", "draws": 1}
    described = describe_measured(model, weights, omega, name="kronecker", **facts)
    assert described.at_base and isinstance(described.theta, BaseTheta)
    assert described.theta == BaseTheta({weight.name: weight.shape for weight in weights})
    assert described.base_samples == {weight.name: weight.base_sample() for weight in weights}
    assert (described.info.labels, described.info.tokens) == ("text", 96)
    described.check_model(lora_model(r=1))
    moved = lora_model(target_modules=ALL, moved=True)
    with pytest.raises(ALoRAError, match="not measured at the base weights: the adapter of .* is not zero"):
        describe_measured(moved, adapted_weights(moved), omega, name="kronecker", **facts)
    dense = {weight.name: torch.ones(weight.shape) for weight in weights}
    assert not describe_measured(model, weights, dense, name="fisher", **facts).at_base
