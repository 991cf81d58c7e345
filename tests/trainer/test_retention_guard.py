"""The guard on general ability, in the plain Trainer: it stops, warns or scales, and leaves the training alone otherwise."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers import Trainer, TrainerCallback

from alora_trainer import ALoRAError, RetentionGuard
from alora_trainer.penalty.strength.probe import Probe
from alora_trainer.trainer.retention.scale_to_promise import scale_to_promise
from alora_trainer.weights.adapted import adapted_weights
from alora_trainer.weights.shrinking import Shrinking
from tests.tiny_training import tiny_llama, token_rows, with_lora

BASE = tiny_llama(initializer_range=0.3)  # sure of itself, so that it has something to forget


def _said_by(model: Any, items: int, length: int) -> list[dict[str, list[int]]]:
    """Text that the model says itself, which no other model can know better."""
    torch.manual_seed(5)
    start = torch.randint(2, 40, (items, 1))
    with torch.no_grad():
        said = model.generate(
            start, attention_mask=torch.ones_like(start), do_sample=True, max_new_tokens=length, min_new_tokens=length
        )
    return [{"input_ids": ids} for ids in said.tolist()]


GENERAL = _said_by(BASE, 130, 11)


@pytest.fixture
def lora_model() -> Callable[..., Any]:
    return lambda **settings: with_lora(BASE, **settings)


def loss(model: Any, rows: list[Any]) -> float:
    probe = Probe(rows, 16)
    return probe.loss(probe.evaluate(model, Accelerator()))


def trained(model: Any, arguments: Any, *callbacks: Any) -> Trainer:
    trainer = Trainer(model=model, args=arguments, train_dataset=token_rows(), callbacks=list(callbacks))
    trainer.train()
    return trainer


def test_shrinking_is_a_share_of_the_movement(lora_model: Callable[..., Any]) -> None:
    model = lora_model(moved=True)
    before = {w.name: w.scaling * w.b.clone() @ w.a.clone() for w in adapted_weights(model)}
    shrinking = Shrinking(model)
    for scale in (0.3, 1.0):
        shrinking.set(scale)
        for weight in adapted_weights(model):
            torch.testing.assert_close(weight.scaling * weight.b @ weight.a, scale * before[weight.name])
    assert all(torch.equal(w.scaling * w.b @ w.a, before[w.name]) for w in adapted_weights(model))  # 1 is what it was


def test_what_trains_beside_the_factors_cannot_be_scaled(lora_model: Callable[..., Any]) -> None:
    with pytest.raises(ALoRAError, match="modules_to_save"):
        Shrinking(lora_model(modules_to_save=["lm_head"]))


def test_scaled_to_a_promise_the_base_is_scale_zero(lora_model: Callable[..., Any]) -> None:
    model = lora_model(moved=True)
    with model.disable_adapter():
        base = loss(model, GENERAL[65:])
    whole = loss(model, GENERAL[65:]) / base - 1
    assert whole > 0.002  # else there is nothing to scale
    found = scale_to_promise(
        model,
        Accelerator(),
        choose=Probe(GENERAL[:65], 16),
        promise=Probe(GENERAL[65:], 16),
        budget=whole / 2,
        kinds=["a"] * 30 + ["b"] * 35,
    )
    assert found.kept and 0 < found.scale < 1
    assert found.base_loss == pytest.approx(base)
    # What is said is said of the model as it is left.
    assert found.rise.rise == pytest.approx(loss(model, GENERAL[65:]) / base - 1, rel=1e-5)
    assert found.rise.upper <= whole / 2
    assert set(found.kinds) == {"a", "b"} and found.kinds["b"].sequences == 35
    assert found.sentence().startswith("KEPT: general cross-entropy rose by")


def _answers_of(model: Any, rows: list[Any]) -> list[dict[str, list[int]]]:
    """Rows whose right answers are what the model finds likeliest now."""
    ids = torch.tensor([row["input_ids"] for row in rows])
    with torch.no_grad():
        said = model(ids).logits.argmax(-1)
    labels = torch.cat([torch.full_like(ids[:, :1], -100), said[:, :-1]], dim=1)
    return [{"input_ids": own, "labels": right} for own, right in zip(ids.tolist(), labels.tolist(), strict=True)]


def test_validation_chooses_among_what_can_be_promised_and_beyond_what_was_trained(
    lora_model: Callable[..., Any],
) -> None:
    """Where the answers are those of twice the movement it goes there; where they are the base's, to the least tested."""
    model = lora_model(moved=True)
    shrinking, whole = Shrinking(model), [weight.b.clone() for weight in adapted_weights(model)]
    shrinking.set(2.0)
    twice = _answers_of(model, GENERAL[:20])
    shrinking.set(0.0)
    base = _answers_of(model, GENERAL[:20])
    shrinking.set(1.0)
    probes = {"choose": Probe(GENERAL[:65], 16), "promise": Probe(GENERAL[65:], 16)}
    far = scale_to_promise(model, Accelerator(), **probes, budget=9.0, validation=Probe(twice, 16))
    assert far.kept and far.scale == 2.0
    for weight, trained_b in zip(adapted_weights(model), whole, strict=True):
        torch.testing.assert_close(weight.b, 2 * trained_b)
    losses = dict(far.validation)
    assert losses[2.0] == min(losses.values()) and losses[2.0] == pytest.approx(loss(model, twice))
    shrinking.set(1.0)
    near = scale_to_promise(model, Accelerator(), **probes, budget=9.0, validation=Probe(base, 16))
    assert near.kept and near.scale == near.tested[0].scale == 0.5
    # A budget that twice the movement does not keep is kept, all the same.
    shrinking.set(1.0)
    held = scale_to_promise(model, Accelerator(), **probes, budget=far.rise.rise / 2, validation=Probe(twice, 16))
    assert held.kept and held.rise.upper <= far.rise.rise / 2 and held.scale < 2.0


def test_without_enough_text_there_is_no_promise(lora_model: Callable[..., Any]) -> None:
    model = lora_model(moved=True)
    probes = {"choose": Probe(GENERAL[:65], 16), "promise": Probe(GENERAL[:20], 16)}
    found = scale_to_promise(model, Accelerator(), **probes, budget=0.01)
    assert not found.kept and "give more general text" in found.sentence()


@pytest.mark.parametrize("max_rise", [0.002, 0.9])
def test_scale_leaves_the_trainer_a_model_that_keeps_it(
    lora_model: Callable[..., Any], training_arguments: Callable[..., Any], max_rise: float
) -> None:
    model, guard = lora_model(), RetentionGuard(GENERAL, max_rise, "scale")
    plain = copy.deepcopy(model)
    trainer = trained(model, training_arguments(max_steps=6), guard)
    other = trained(plain, training_arguments(max_steps=6))
    assert guard.promise is not None and guard.kept
    assert guard.promise.scale == 1.0 if max_rise == 0.9 else guard.promise.scale < 1.0
    for ours, theirs in zip(adapted_weights(model), adapted_weights(plain), strict=True):
        torch.testing.assert_close(ours.b, theirs.b * guard.promise.scale)  # and nothing else was touched
    assert trainer.state.log_history[-1]["general_rise"] == guard.promise.rise.rise
    assert other.state.global_step == trainer.state.global_step == 6


def test_stop_ends_with_the_weights_of_the_last_look_that_kept_it(
    lora_model: Callable[..., Any], training_arguments: Callable[..., Any]
) -> None:
    model = lora_model()
    guard = RetentionGuard(GENERAL, 0.002, "stop", every=2)
    with model.disable_adapter():
        base = loss(model, GENERAL)
    trainer = trained(model, training_arguments(max_steps=20, learning_rate=0.02), guard)
    assert trainer.state.global_step < 20
    assert guard.kept and all(bound.keeps(0.002) for _, bound in guard.looks)
    step, last = guard.looks[-1]
    assert loss(model, GENERAL) / base - 1 == pytest.approx(last.rise, abs=1e-6)
    assert step < trainer.state.global_step
    rises = [log["general_rise_upper"] for log in trainer.state.log_history if "general_rise" in log]
    assert rises[-1] > 0.002 and len(rises) == len(guard.looks) + 1


class Ends(TrainerCallback):
    """Ends a training early, as a time limit does."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop |= state.global_step == 5


def test_weights_that_a_training_ended_early_leaves_are_looked_at(
    lora_model: Callable[..., Any], training_arguments: Callable[..., Any]
) -> None:
    model, guard = lora_model(), RetentionGuard(GENERAL, 0.002, "stop", every=4)
    with model.disable_adapter():
        base = loss(model, GENERAL)
    trainer = trained(model, training_arguments(max_steps=20, learning_rate=0.02), guard, Ends())
    assert trainer.state.global_step <= 5 and guard.kept
    assert loss(model, GENERAL) / base - 1 == pytest.approx(guard.looks[-1][1].rise, abs=1e-6)


def test_warn_changes_nothing(
    lora_model: Callable[..., Any], training_arguments: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    model = lora_model()
    plain = copy.deepcopy(model)
    with caplog.at_level(logging.WARNING):
        trained(model, training_arguments(max_steps=6), guard := RetentionGuard(GENERAL, 1e-4, "warn", every=3))
    trained(plain, training_arguments(max_steps=6))
    assert guard.kept is False and [step for step, _ in guard.looks] == [0, 3, 6]
    assert sum("for max_rise 0.01%" in record.message for record in caplog.records) == 1
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_models_own_weights_are_put_back_too(
    lora_model: Callable[..., Any], training_arguments: Callable[..., Any]
) -> None:
    model = lora_model().unload()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    base = loss(model, GENERAL)
    guard = RetentionGuard(GENERAL, 0.01, "stop", every=1)
    trainer = trained(model, training_arguments(max_steps=30, learning_rate=0.02), guard)
    assert trainer.state.global_step < 30
    assert loss(model, GENERAL) / base - 1 == pytest.approx(guard.looks[-1][1].rise, abs=1e-6)


def test_it_goes_on_with_an_adapter_and_refuses_to_where_the_start_is_gone(
    lora_model: Callable[..., Any], training_arguments: Callable[..., Any], tmp_path: Path
) -> None:
    arguments = training_arguments(max_steps=4, save_strategy="steps", save_steps=2)
    whole = RetentionGuard(GENERAL, 0.9, "stop", every=2)
    trained(lora_model(), arguments, whole)
    resumed = RetentionGuard(GENERAL, 0.9, "stop", every=2)
    trainer = Trainer(model=lora_model(), args=arguments, train_dataset=token_rows(), callbacks=[resumed])
    trainer.train(resume_from_checkpoint=str(Path(arguments.output_dir) / "checkpoint-2"))
    assert resumed.looks[-1][1].rise == pytest.approx(whole.looks[-1][1].rise, rel=1e-4)
    assert resumed.looks[0][1].rise == pytest.approx(
        whole.looks[1][1].rise, rel=1e-4
    )  # from the base, not the checkpoint
    model = lora_model().unload()
    trainer = Trainer(model=model, args=arguments, train_dataset=token_rows(), callbacks=[resumed])
    trainer.state.global_step = 2
    with pytest.raises(ALoRAError, match="start is no longer there"):
        resumed.on_train_begin(arguments, trainer.state, trainer.control, model=model)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"action": "pray"}, "use one of stop, warn, scale"),
        ({"max_rise": 0.0}, "must be a positive share"),
        ({"every": 0}, "a number of steps"),
        ({"general": GENERAL[:100], "action": "scale"}, "needs 120 at least"),
    ],
)
def test_what_it_refuses(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ALoRAError, match=words):
        RetentionGuard(**({"general": GENERAL} | settings))


@pytest.mark.parametrize(
    "path", ["texts/of_a_name_that_is_longer_than_sixty_characters/train.jsonl.gz", Path("texts.jsonl")]
)
def test_a_path_is_no_list_of_texts(path: Any) -> None:
    with pytest.raises(ALoRAError, match="is one text or a path: give a list of texts"):
        RetentionGuard(path)


def test_texts_need_a_tokenizer(lora_model: Callable[..., Any], training_arguments: Callable[..., Any]) -> None:
    guard = RetentionGuard(["a text"] * 60)
    with pytest.raises(ALoRAError, match="processing_class"):
        trained(lora_model(), training_arguments(), guard)
