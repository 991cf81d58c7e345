"""Parts of a training: the moments at which a method of one's own is called, and what it may do in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from alora_trainer import ALoRAConfig, ALoRAError, ALoRATrainer
from alora_trainer.trainer.part import Part
from alora_trainer.weights.adapted import adapted_weights
from tests.penalty.test_penalty import made_map
from tests.tiny_training import tiny_llama


class Diary(Part):
    """Writes down what it is called for."""

    def __init__(self, *, needs_weights: bool = True, end_after: int | None = None) -> None:
        self.needs_weights = needs_weights
        self.end_after = end_after
        self.entries: list[str] = []
        self.seen: dict[str, Any] = {}

    watches_gradients = True

    @property
    def ends_training(self) -> bool:
        return self.entries.count("after_step") == self.end_after

    def begin(self, trainer, weights, *, resumes):
        self.entries.append("resumes" if resumes else "begin")
        self.seen["weights"] = [weight.name for weight in weights]

    def load(self, folder):
        self.entries.append(f"load {(Path(folder) / 'diary.txt').read_text()}")

    def before_forward(self):
        self.entries.append("before_forward")

    def add_data_loss(self, loss):
        self.entries.append("add_data_loss")

    def before_step(self, gradients, *, loss_scale, tokens):
        self.entries.append("before_step")
        self.seen |= {"gradients": gradients, "tokens": tokens}

    def after_step(self, *, skipped):
        self.entries.append("after_step")

    def end_of_step(self, *, last):
        self.entries.append("last step" if last else "end_of_step")
        return {"steps of the diary": float(self.entries.count("after_step"))}

    def logs(self):
        return {"diary": 1.0}

    def save(self, folder):
        self.entries.append("save")
        (Path(folder) / "diary.txt").write_text("of the diary")

    def end(self):
        self.entries.append("end")
        return {"closed": 1.0}


STEP = ["before_forward", "add_data_loss", "before_step", "after_step"]


@pytest.fixture
def build(lora_model, token_data, training_arguments):
    def make(*parts: Part, model=None, alora=None, importance=None, **settings):
        args = training_arguments(**({"max_steps": 2} | settings))
        return ALoRATrainer(
            model if model is not None else lora_model(moved=True), args, train_dataset=token_data(),
            parts=parts, alora=alora, importance=importance,
        )  # fmt: skip

    return make


def test_a_part_is_called_at_every_moment(build):
    diary = Diary()
    trainer = build(diary, save_strategy="steps", save_steps=1)
    trainer.train()
    assert diary.entries == ["begin", *STEP, "end_of_step", "save", *STEP, "last step", "save", "end"]
    assert diary.seen["weights"] == [weight.name for weight in trainer._weights] and diary.seen["tokens"] == 16
    lines = trainer.state.log_history
    assert [line["diary"] for line in lines if "loss" in line] == [1.0, 1.0]
    assert [line["steps of the diary"] for line in lines if "steps of the diary" in line] == [1.0, 2.0]
    assert [line["closed"] for line in lines if "closed" in line] == [1.0]


def test_a_part_is_resumed(build):
    build(Diary(), save_strategy="steps", save_steps=1, max_steps=3).train()
    diary = Diary()
    folder = Path(build().args.output_dir)
    build(diary, save_strategy="steps", save_steps=1, max_steps=3).train(str(folder / "checkpoint-2"))
    assert diary.entries == ["resumes", "load of the diary", *STEP, "last step", "save", "end"]


def test_a_part_ends_the_training(build):
    diary = Diary(end_after=1)
    trainer = build(diary, max_steps=5)
    trainer.train()
    assert trainer.state.global_step == 1 and diary.entries[-2:] == ["last step", "end"]


def test_a_part_without_weights_asks_nothing_of_the_model(build):
    """A plain model, nothing adapted and nothing recorded: as it may be trained without this package."""
    diary = Diary(needs_weights=False)
    build(diary, model=tiny_llama(), learning_rate=1e-4).train()
    assert diary.seen["weights"] == [] and "before_step" not in diary.entries
    assert diary.entries.count("end_of_step") == 1 and diary.entries[-2:] == ["last step", "end"]


class WeightDecay(Part):
    """``c/2 ||(A, B)||**2`` once an optimizer step, however many micro-batches it has."""

    needs_weights = True
    watches_gradients = True

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self.gradients: list[torch.Tensor] = []

    def begin(self, trainer, weights, *, resumes):
        self.weights = weights

    def loss_term(self, dtype, device):
        squares = [p.square().sum() for weight in self.weights for p in weight.parameters]
        return self.strength / 2 * torch.stack(squares).sum()

    def added_gradients(self):
        return {
            weight.name: tuple(self.strength * matrix.to(weight.dtype) for matrix in weight.matrices)
            for weight in self.weights
        }

    def before_step(self, gradients, *, loss_scale, tokens):
        self.gradients.append(torch.cat([g.flatten() for pair in gradients.values() for g in pair]))


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 1), (2, 2)])
def test_a_loss_term_counts_once_a_step_and_is_not_the_datas(build, lora_model, batch, accumulation):
    seen, moved = {}, {}
    for strength in (0.0, 0.5):
        part, model = WeightDecay(strength), lora_model(moved=True)
        before = {w.name: (w.a.clone(), w.b.clone()) for w in adapted_weights(model)}
        build(
            part, model=model, max_steps=1, optim="sgd", learning_rate=0.1, max_grad_norm=0.0,
            per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
        ).train()  # fmt: skip
        seen[strength] = part.gradients[0]
        moved[strength] = {w.name: (w.a.clone(), w.b.clone()) for w in adapted_weights(model)}
    torch.testing.assert_close(seen[0.0], seen[0.5], rtol=1e-4, atol=1e-6)
    for name, pair in before.items():
        for start, plain, decayed in zip(pair, moved[0.0][name], moved[0.5][name], strict=True):
            torch.testing.assert_close(plain - decayed, 0.1 * 0.5 * start, rtol=1e-3, atol=1e-6)


class Jump(Part):
    """Moves every B by one after each step."""

    def begin(self, trainer, weights, *, resumes):
        self.model = trainer.model

    def after_step(self, *, skipped):
        with torch.no_grad():
            for weight in adapted_weights(self.model):
                weight.parameter_b.add_(1.0)


def test_recording_sees_what_other_parts_moved(build, lora_model):
    """w = -sum g D: with a learning rate of zero, all of the movement is the part's."""
    trainer = build(Jump(), alora=ALoRAConfig(record="path"), optim="sgd", learning_rate=0.0)
    trainer.train()
    assert max(float(omega.max()) for omega in trainer.recorded_importance.values()) > 0
    still = build(alora=ALoRAConfig(record="path"), optim="sgd", learning_rate=0.0)
    with pytest.raises(ALoRAError, match="is zero everywhere"):
        still.train()


def test_parts_beside_protecting_and_recording(build, lora_model, tmp_path):
    """Protecting comes first and recording last; a part that only watches changes nothing."""
    importance = made_map(lora_model(moved=True))
    settings = {"alora": ALoRAConfig(lam=0.5, record="projected", application="decoupled"), "importance": importance}
    diary = Diary()
    trained = [build(*parts, **settings) for parts in ((), (diary,))]
    for trainer in trained:
        trainer.train()
    assert [type(part).__name__ for part in trained[1].parts] == ["Protecting", "Diary", "Recording"]
    for name, trainer in zip(("plain", "watched"), trained, strict=True):
        save_file(
            {key: p.detach().clone() for key, p in trainer.model.named_parameters() if p.requires_grad},
            tmp_path / f"{name}.safetensors",
        )
    one, other = (load_file(tmp_path / f"{name}.safetensors") for name in ("plain", "watched"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    for name, omega in trained[0].recorded_importance.items():
        assert torch.equal(omega, trained[1].recorded_importance[name])
