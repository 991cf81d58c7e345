"""Where protecting starts, what it holds, and what the weights of layers are."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from alora_trainer import ALoRAConfig, ALoRAError, ALoRATrainer, ImportanceMap
from alora_trainer.experiment.run.start import join_adapters
from alora_trainer.penalty.layer_weights import given_layer_weights, layer_coefficients
from alora_trainer.trainer.protecting import Protecting
from alora_trainer.weights.adapted import adapted_weights
from alora_trainer.weights.reference import Reference
from tests.conftest import move_factors
from tests.penalty.test_penalty import made_map


def delta(weight) -> torch.Tensor:
    return weight.scaling * weight.b.double() @ weight.a.double()


def map_with_samples(model) -> ImportanceMap:
    importance = made_map(model)
    samples = {weight.name: weight.base_sample() for weight in adapted_weights(model)}
    return importance.with_omega({name: importance.stored(name) for name in importance}, base_samples=samples)


@pytest.fixture
def recorded(lora_model):
    """A model with a recorded adapter, and its map."""
    model = lora_model(moved=True, target_modules=["q_proj", "v_proj", "embed_tokens"])
    return model, map_with_samples(model)


def fresh(base, **lora):
    torch.manual_seed(3)
    settings = {"r": 5, "lora_alpha": 7, "target_modules": ["q_proj", "v_proj", "embed_tokens"]} | lora
    return get_peft_model(base, LoraConfig(**settings))


def protection(model, importance, **alora) -> Protecting:
    config = ALoRAConfig(**({"lam": 1.0, "layer_weights": "none", "normalize": False} | alora))
    held = Protecting(importance, config)
    held.prepare(importance.check_model(model, start=config.start, missing=config.missing), steps=10)
    held.before_forward()
    return held


@pytest.mark.parametrize("start", ["merged", "bare"])
@pytest.mark.parametrize("anchor", ["reference", "base"])
def test_the_penalty_of_a_fresh_adapter(recorded, start, anchor):
    """On its own movement, or on what moved since the base: the merged base has moved by theta* already."""
    model, importance = recorded
    moved = {weight.name: delta(weight) for weight in adapted_weights(model)}
    base = copy.deepcopy(model)
    base = base.merge_and_unload() if start == "merged" else base.unload()
    new = fresh(base)
    move_factors(new, 0.1)
    held = protection(new, importance, start=start, anchor=anchor)
    expected = torch.zeros((), dtype=torch.float64)
    for weight in adapted_weights(new):
        since_base = moved[weight.name] if start == "merged" and anchor == "base" else 0
        expected += (importance[weight.name].double() * (delta(weight) + since_base) ** 2).sum()
    held.loss_term(torch.float32, torch.device("cpu"))
    assert float(held.value) == pytest.approx(float(expected), rel=1e-5)


def test_anchor_base_of_the_recorded_adapter(recorded):
    model, importance = recorded
    move_factors(model, 0.1)
    held = protection(model, importance, anchor="base")
    held.loss_term(torch.float32, torch.device("cpu"))
    expected = sum((importance[w.name].double() * delta(w) ** 2).sum() for w in adapted_weights(model))
    assert float(held.value) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("application", ["coupled", "decoupled"])
def test_a_fresh_adapter_is_held_where_it_starts(recorded, token_data, training_arguments, application, caplog):
    model, importance = recorded
    drifts = {}
    for lam in (0.0, 1e4):
        new = fresh(copy.deepcopy(model).merge_and_unload(), r=2)
        config = ALoRAConfig(lam=lam, start="merged", application=application)
        with caplog.at_level(logging.WARNING, logger="alora_trainer"):
            trainer = ALoRATrainer(
                new, training_arguments(max_steps=20, learning_rate=0.01), train_dataset=token_data(),
                importance=importance, alora=config,
            )  # fmt: skip
            trainer.train()
        drifts[lam] = [log["drift"] for log in trainer.state.log_history if "drift" in log][-1]
    assert drifts[1e4] < 0.3 * drifts[0.0]
    assert "distance" not in caplog.text  # it starts where it is held


def test_a_base_that_is_not_what_was_said_is_refused(recorded):
    model, importance = recorded
    merged = fresh(copy.deepcopy(model).merge_and_unload())
    bare = fresh(copy.deepcopy(model).unload())
    importance.check_model(merged, start="merged")
    importance.check_model(bare, start="bare")
    with pytest.raises(ALoRAError, match="merge the map's own adapter into the base"):
        importance.check_model(bare, start="merged")
    with pytest.raises(ALoRAError, match="load the base model that the map names"):
        importance.check_model(merged, start="bare")


def test_another_base_is_taken_if_it_is_allowed_but_never_the_wrong_one_of_merged_and_bare(recorded, caplog):
    model, importance = recorded
    other = copy.deepcopy(model).unload()
    for parameter in other.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    settings = {"start": "bare"}
    with pytest.raises(ALoRAError, match="other base weights.*or set allow_other_revision"):
        importance.check_model(fresh(copy.deepcopy(other)), **settings)
    assert importance.check_model(fresh(other), **settings, allow_other_revision=True)
    assert "going on, as allow_other_revision says" in caplog.text
    bare = fresh(copy.deepcopy(model).unload())
    with pytest.raises(ALoRAError, match="are as recorded, and should be with the recorded adapter"):
        importance.check_model(bare, start="merged", allow_other_revision=True)


def test_a_trainer_says_that_its_adapter_is_for_the_merged_base(recorded, token_data, training_arguments):
    model, importance = recorded
    new = fresh(copy.deepcopy(model).merge_and_unload())
    config = ALoRAConfig(lam=0.1, start="merged", budget=None, lam_schedule="linear")
    trainer = ALoRATrainer(
        new, training_arguments(), train_dataset=token_data(), importance=importance, alora=config
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    card = (Path(trainer.args.output_dir) / "README.md").read_text()
    assert '"FOLDER_OF_THE_MAP").merge_and_unload()  # where the training started' in card
    assert "lam_schedule linear" in card and "last_lambda" in card


def test_a_small_recorded_movement_still_tells_merged_from_bare(lora_model):
    """Within the tolerance that one element has for rounding, but not all of them together."""
    model = lora_model()
    move_factors(model, 2e-4)
    importance = map_with_samples(model)
    merged = fresh(copy.deepcopy(model).merge_and_unload(), target_modules=["q_proj", "v_proj"])
    bare = fresh(copy.deepcopy(model).unload(), target_modules=["q_proj", "v_proj"])
    importance.check_model(merged, start="merged")
    with pytest.raises(ALoRAError, match="the base weights are as recorded, and should be with the recorded adapter"):
        importance.check_model(bare, start="merged")
    with pytest.raises(ALoRAError, match="the base weights are with the recorded adapter in it, and should be as rec"):
        importance.check_model(merged, start="bare")


def test_weights_without_an_importance(recorded):
    model, importance = recorded
    new = fresh(copy.deepcopy(model).merge_and_unload(), target_modules=["q_proj", "o_proj", "down_proj"])
    move_factors(new, 0.1)
    with pytest.raises(
        ALoRAError, match="no importance of model.layers.0.self_attn.o_proj.*missing='uniform' or 'free'"
    ):
        importance.check_model(new, start="merged")
    known = [weight for weight in adapted_weights(new) if weight.name in importance]
    free = protection(new, importance, start="merged", missing="free")
    assert [weight.name for weight in free.weights] == [weight.name for weight in known]
    uniform = protection(new, importance, start="merged", missing="uniform")
    assert len(uniform.weights) == 6
    mean = importance.total([w.name for w in known]) / sum(w.shape[0] * w.shape[1] for w in known)
    expected = torch.zeros((), dtype=torch.float64)
    for weight in adapted_weights(new):
        omega = importance[weight.name].double() if weight.name in importance else mean
        expected += (omega * delta(weight) ** 2).sum()
    uniform.loss_term(torch.float32, torch.device("cpu"))
    assert float(uniform.value) == pytest.approx(float(expected), rel=1e-5)


def test_free_weights_train_like_plain_lora(recorded, token_data, training_arguments, caplog):
    model, importance = recorded
    new = fresh(copy.deepcopy(model).merge_and_unload(), target_modules=["v_proj", "o_proj"])
    config = ALoRAConfig(lam=1e6, start="merged", missing="free", application="decoupled")
    trainer = ALoRATrainer(
        new, training_arguments(max_steps=6), train_dataset=token_data(), importance=importance, alora=config
    )
    with caplog.at_level(logging.WARNING, logger="alora_trainer"):
        trainer.train()
    assert "nothing holds 4 trainable tensors" in caplog.text
    sizes = {weight.name: float(delta(weight).norm()) for weight in adapted_weights(new)}
    held = [size for name, size in sizes.items() if "v_proj" in name]
    loose = [size for name, size in sizes.items() if "o_proj" in name]
    assert max(held) < 0.1 * min(loose)


def test_nothing_to_hold_is_refused(recorded):
    model, importance = recorded
    new = fresh(copy.deepcopy(model).merge_and_unload(), target_modules=["o_proj"])
    with pytest.raises(ALoRAError, match="none of the adapted weights"):
        protection(new, importance, start="merged", missing="free")


def test_given_layer_weights(recorded):
    model, importance = recorded
    names = list(importance)
    given = {"model.layers.0.self_attn.q_proj": 5.0, r"layers\.1\..*": 2.0, ".*_proj": 0.0, ".*": 0.5}
    found = given_layer_weights(given, names)
    assert found["model.layers.0.self_attn.q_proj"] == 5
    assert found["model.layers.1.self_attn.q_proj"] == found["model.layers.1.self_attn.v_proj"] == 2
    assert found["model.layers.0.self_attn.v_proj"] == 0 and found["model.embed_tokens"] == 0.5
    literal = layer_coefficients(importance, names, layer_weights=given, normalize=False)
    assert literal == found
    normal = layer_coefficients(importance, names, layer_weights=given, normalize=True)
    assert sum(normal.values()) / len(names) == pytest.approx(1 / importance.mean)
    assert normal[names[0]] / normal[names[-1]] == pytest.approx(found[names[0]] / found[names[-1]])
    moved = protection(model, importance, layer_weights=given)
    move_factors(model, 0.1)
    moved.before_forward()
    moved.loss_term(torch.float32, torch.device("cpu"))
    expected = 0.0
    for weight in adapted_weights(model):
        r = importance.reference[weight.name]
        star = r.scaling * r.b.double() @ r.a.double()
        expected += found[weight.name] * float((importance[weight.name] * (delta(weight) - star) ** 2).sum())
    assert float(moved.value) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"q_proj": 1.0}, "gives model.layers.0.self_attn.v_proj no weight|no weight: add a key"),
        ({"k_proj": 1.0, ".*": 1.0}, "'k_proj' fits none of the held weights"),
        ({"q_proj(": 1.0}, "is no regular expression"),
        ({".*": 0.0}, "every layer weight is zero"),
    ],
)
def test_layer_weights_that_do_not_fit(recorded, given, error):
    model, importance = recorded
    with pytest.raises(ALoRAError, match=error):
        protection(model, importance, layer_weights=given, normalize=True)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"layer_weights": {}}, "empty mapping"),
        ({"layer_weights": {"q_proj": -1}}, "'q_proj': -1 must be"),
        ({"lam": "much"}, "lam='much' must be zero or a positive number, or 'auto'"),
        ({"budget": 0}, "budget=0 must be a positive share"),
        ({"budget": 1}, "budget=1 would let general loss double: 0.01 is one percent"),
        ({"budget": 0.01, "lam": 0}, "cannot start from lam=0"),
        ({"budget": 0.01, "lam_schedule": "linear"}, "leave one of the two out"),
        ({"lam_end_factor": -1}, "lam_end_factor=-1"),
        ({"probe_steps": 0}, "probe_steps=0 must be a whole number"),
        ({"start": "anew"}, "start='anew' is unknown: use one of 'recorded', 'merged', 'bare'"),
        ({"missing": None}, "missing=None is unknown"),
    ],
)
def test_settings_that_cannot_be(settings, error):
    with pytest.raises(ALoRAError, match=error):
        ALoRAConfig(**settings)


def test_joined_adapters_move_the_base_by_their_sum(lora_model):
    """Other ranks, scalings, and target modules: the joined adapter over the bare base is the new one over the merged base."""
    recorded = lora_model(moved=True, rank_pattern={"q_proj": 5})
    bare = copy.deepcopy(recorded).unload()
    new = fresh(
        copy.deepcopy(recorded).merge_and_unload(), target_modules=["q_proj", "o_proj", "embed_tokens"], use_rslora=True
    )
    move_factors(new, 0.1)
    joined = join_adapters([recorded, new], bare)
    ids = torch.arange(2, 20)[None]
    assert isinstance(joined, PeftModel)
    with torch.no_grad():
        torch.testing.assert_close(joined(ids).logits, new(ids).logits, rtol=1e-4, atol=1e-5)


def test_streaming_gives_every_omega_in_its_turn():
    from alora_trainer.importance.kinds.formats import store
    from alora_trainer.penalty.streaming import ResidentOmegas, StreamedOmegas

    torch.manual_seed(0)
    omegas = [
        store(torch.rand(m, 150), kind) for m, kind in ((3, "log8"), (40, "float32"), (7, "factored"), (1, "log8"))
    ]
    devices = [torch.device("cpu")] * 4
    for _ in range(2):
        streamed, resident = StreamedOmegas(omegas, devices), ResidentOmegas(omegas, devices)
        for here, there in zip(streamed.in_order(), resident.in_order(), strict=True):
            assert torch.equal(here.dense(), there.dense())
            for name, part in here.parts.items():
                assert part.data_ptr() != there.parts[name].data_ptr()


def test_a_reference_of_another_form_keeps_its_accuracy(recorded):
    """A fresh adapter's own movement is its product alone: no cancellation, however small it is."""
    model, importance = recorded
    new = fresh(copy.deepcopy(model).merge_and_unload())
    move_factors(new, 1e-6)
    held = protection(new, importance, start="merged")
    expected = sum((importance[w.name].double() * delta(w) ** 2).sum() for w in adapted_weights(new))
    held.loss_term(torch.float32, torch.device("cpu"))
    assert float(held.value) == pytest.approx(float(expected), rel=1e-5)
    assert isinstance(importance.reference["model.embed_tokens"], Reference)
