"""Recording in all its places and in the bad cases: where w lives, late folding, the true gradient, overflow, resume."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from alora_trainer import ALoRAConfig, ALoRAError, ALoRATrainer
from alora_trainer.importance.recording import fold
from alora_trainer.importance.recording.estimators import StepFactors, paper, path
from alora_trainer.weights import row_blocks
from alora_trainer.weights.steps import Factors, FactorStep
from tests.importance.test_recorder import InOrder


@settings(max_examples=40, deadline=None)
@given(
    m=st.integers(1, 40), n=st.integers(1, 30), r=st.integers(1, 5), steps=st.integers(1, 4), block=st.integers(1, 300),
    scaling=st.floats(0.1, 8), seed=st.integers(0, 2**31), staged=st.booleans(),
)  # fmt: skip
def test_folding_equals_dense_float64(m, n, r, steps, block, scaling, seed, staged):
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    original, row_blocks.BLOCK_ELEMENTS = row_blocks.BLOCK_ELEMENTS, block
    try:
        for estimator in (paper, path):
            expected, taken = torch.zeros(m, n, dtype=torch.float64), []
            for _ in range(steps):
                a, b, ga, gb, eta = rand(r, n), rand(m, r), rand(r, n), rand(m, r), 0.1
                a_after, b_after = a + 0.1 * rand(r, n), b + 0.1 * rand(m, r)
                g = scaling * (gb @ a + b @ ga - eta * gb @ ga)
                expected -= g * (-eta * g if estimator is paper else scaling * (b_after @ a_after - b @ a))
                taken.append(estimator(FactorStep(a, b, ga, gb, a_after, b_after, scaling, eta)))
            w = torch.zeros(m, n, dtype=torch.float64)
            if staged:
                fold.fold_staged(w, taken, w.device)
            else:
                fold.fold_steps(w, taken)
            torch.testing.assert_close(w, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
        dense_gradient = rand(m, n)
        w = torch.zeros(m, n, dtype=torch.float64)
        fold.fold_staged(w, [StepFactors(dense_gradient, Factors(rand(m, r), rand(r, n)))], w.device)
        assert bool((w != 0).any())
        total = Factors(rand(m, r), rand(r, n))
        omega = fold.consolidate(expected.clone(), total, 0.01)
        torch.testing.assert_close(omega, expected.clamp(min=0) / ((total.left @ total.right) ** 2 + 0.01))
    finally:
        row_blocks.BLOCK_ELEMENTS = original


@settings(max_examples=200, deadline=None)
@given(m=st.integers(1, 200_000), n=st.integers(1, 200_000))
def test_folding_from_host_memory_holds_less_than_64_megabytes(m, n):
    """What `fold_staged` holds on a GPU beside the factors: a block of w and two scratch blocks, for any shape of weight."""
    rows = fold.block_rows(m, n, torch.device("cuda"))
    assert 1 <= rows <= m
    assert 3 * rows * n * 4 < 64e6


def record(model, args, data, **settings):
    trainer = InOrder(model, args, train_dataset=data, alora=ALoRAConfig(**({"record": "path"} | settings)))
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    "settings", [{"omega_device": "cpu"}, {"omega_device": "disk"}, {"fold_every": 3}, {"fold_every": 100}], ids=str
)
def test_every_place_and_every_rhythm_gives_the_same_importance(
    lora_model, token_data, training_arguments, settings, tmp_path
):
    data = token_data()
    args = training_arguments(max_steps=5, output_dir=str(tmp_path / "out"))
    expected = record(lora_model(), args, data).importance
    got = record(lora_model(), args, data, **settings).importance
    for name, omega in expected.items():
        assert torch.equal(got[name], omega), name
    assert not list((tmp_path / "out").glob("importance-recording*"))


@pytest.mark.parametrize("targets", [["q_proj", "down_proj"], ["embed_tokens", "v_proj"]], ids=str)
@pytest.mark.parametrize("accumulation", [1, 3])
def test_exact_uses_the_gradient_that_full_fine_tuning_would_have(
    lora_model, token_data, training_arguments, accumulation, targets
):
    """One SGD step: w = -G * D with autograd's G of the merged weight itself."""
    model = lora_model(dtype=torch.float64, moved=True, target_modules=targets)
    data = token_data(items=2 * accumulation)
    dense = copy.deepcopy(model).merge_and_unload()
    rows = [torch.tensor(data[column]) for column in ("input_ids", "labels")]
    for parameter in dense.parameters():
        parameter.requires_grad_(True)
    if "embed_tokens" in targets:  # LoRA on a tied embedding adapts the input side alone
        dense.lm_head.weight = torch.nn.Parameter(dense.lm_head.weight.detach().clone())
        model = lora_model(dtype=torch.float64, moved=True, target_modules=targets)
        dense.lm_head.weight.data.copy_(model.base_model.model.lm_head.weight.data)
    logits = dense(input_ids=rows[0]).logits
    cross_entropy(logits[:, :-1].flatten(0, 1), rows[1][:, 1:].flatten(), ignore_index=-100).backward()
    before = {name: m.get_delta_weight("default").detach() for name, m in model.named_modules() if hasattr(m, "lora_A")}
    args = training_arguments(optim="sgd", max_steps=1, gradient_accumulation_steps=accumulation, max_grad_norm=0.01)
    trainer = record(model, args, data, record="exact", xi=1.0)
    for module_name, start in before.items():
        name = module_name.removeprefix("base_model.model.")
        moved = model.get_submodule(module_name).get_delta_weight("default").detach() - start
        gradient = dense.get_submodule(name).weight.grad
        expected = (-gradient * moved).clamp(min=0) / (moved**2 + 1.0)
        got = trainer.importance[name].T if "embed_tokens" in name else trainer.importance[name]
        assert expected.max() > 0
        assert float((got - expected).norm() / expected.norm()) < 1e-5


def test_exact_under_gradient_checkpointing_is_the_same(lora_model, token_data, training_arguments):
    maps = []
    for checkpointing in (False, True):
        model = lora_model(dtype=torch.float64)
        args = training_arguments(
            gradient_checkpointing=checkpointing, gradient_checkpointing_kwargs={"use_reentrant": False}
        )
        maps.append(record(model, args, token_data(), record="exact").importance)
    for name, omega in maps[0].items():
        assert omega.max() > 0
        torch.testing.assert_close(maps[1][name], omega, rtol=1e-6, atol=1e-12)


def test_exact_leaves_no_hooks_behind(lora_model, token_data, training_arguments):
    trainer = record(lora_model(), training_arguments(), token_data(), record="exact")
    assert all(not weight.layer._forward_hooks for weight in trainer._weights)


class Scaled(InOrder):
    """Trains with a real fp16 loss scaler on the CPU; its scale makes chosen steps overflow."""

    overflowing: tuple[int, ...] = ()

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=10**6)

    def training_step(self, model, inputs, *args, **kwargs):
        if self.state.global_step in self.overflowing:
            self.accelerator.scaler.update(2.0**127 * 1.5)
        loss = super().training_step(model, inputs, *args, **kwargs)
        return loss


@pytest.mark.parametrize("estimator", ["path", "exact"])
def test_overflowing_fp16_steps_leave_w_untouched(lora_model, token_data, training_arguments, estimator):
    """Steps whose scaled gradients are infinite do not move the weights and must not touch w, or turn it into NaN."""

    class Overflows(Scaled):
        overflowing = (1, 2)

        def training_step(self, model, inputs, *args, **kwargs):
            if self.state.global_step == 3:
                self.accelerator.scaler.update(2.0**10)
            return super().training_step(model, inputs, *args, **kwargs)

    config = ALoRAConfig(record=estimator, xi=1e-3)
    data = token_data(items=12)
    settings = {
        "optim": "sgd",
        "max_grad_norm": 0.0,
    }  # accelerate would clip scaled gradients here: it knows no fp16 on a CPU
    trainer = Overflows(lora_model(), training_arguments(max_steps=5, **settings), train_dataset=data, alora=config)
    trainer.train()

    assert trainer.importance.info.steps == 3
    kept = data.select([0, 1, 6, 7, 8, 9])
    plain = InOrder(lora_model(), training_arguments(max_steps=3, **settings), train_dataset=kept, alora=config)
    plain.train()
    for name, omega in plain.importance.items():
        assert omega.max() > 0
        torch.testing.assert_close(trainer.importance[name], omega, rtol=1e-3, atol=1e-9)


def test_a_last_partial_window_is_recorded(lora_model, token_data, training_arguments):
    """Five batches with accumulation two: three optimizer steps, the last of one batch."""
    args = training_arguments(max_steps=-1, num_train_epochs=1, gradient_accumulation_steps=2)
    trainer = record(lora_model(), args, token_data(items=10))
    assert trainer.state.global_step == 3 and trainer.importance.info.steps == 3


def test_a_frozen_factor_counts_as_a_zero_gradient(lora_model, token_data, training_arguments):
    model = lora_model(moved=True)
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(False)
    trainer = record(model, training_arguments(), token_data())
    assert all(float(omega.max()) > 0 for omega in trainer.importance.values())


def test_adapters_that_do_not_train_are_left_out(lora_model, token_data, training_arguments):
    from peft import LoraConfig

    model = lora_model()
    model.add_adapter("other", LoraConfig(r=2, target_modules=["o_proj"]))
    trainer = record(model, training_arguments(), token_data())
    assert all("o_proj" not in name for name in trainer.importance)


def test_parameter_groups_with_rates_of_their_own(lora_model, token_data, training_arguments):
    """Layer 0 learns ten times as fast as layer 1; with plain SGD `paper` and `path` still agree exactly."""
    maps = []
    for estimator in ("paper", "path"):
        model = lora_model(dtype=torch.float64)
        groups = [
            {"params": [p for n, p in model.named_parameters() if p.requires_grad and f"layers.{i}." in n], "lr": lr}
            for i, lr in ((0, 0.1), (1, 0.01))
        ]
        optimizer = torch.optim.SGD(groups)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        trainer = InOrder(
            model, training_arguments(max_grad_norm=0.0), train_dataset=token_data(), optimizers=(optimizer, scheduler),
            alora=ALoRAConfig(record=estimator),
        )  # fmt: skip
        trainer.train()
        maps.append(trainer.importance)
    for name, omega in maps[0].items():
        assert omega.max() > 0
        torch.testing.assert_close(maps[1][name], omega, rtol=1e-9, atol=1e-15)


def test_a_token_budget_on_streaming_data(lora_model, token_data, training_arguments):
    stream = token_data(items=40).to_iterable_dataset()
    args = training_arguments(max_steps=50)
    config = ALoRAConfig(record="path", record_tokens=100)
    trainer = ALoRATrainer(lora_model(), args, train_dataset=stream, alora=config)
    trainer.train()
    assert trainer.state.global_step == 7  # of 2 x 8 tokens each
    assert trainer.importance.info.tokens == 112


@pytest.mark.parametrize("settings", [{}, {"fold_every": 3}, {"record": "exact"}, {"omega_device": "disk"}], ids=str)
def test_interrupted_and_resumed_recording_equals_the_whole(
    lora_model, token_data, training_arguments, settings, tmp_path
):
    """Ctrl-C in the fourth step: what the last checkpoint holds is enough."""

    class Interrupted(InOrder):
        def training_step(self, *args, **kwargs):
            if self.state.global_step == 3:
                raise KeyboardInterrupt
            return super().training_step(*args, **kwargs)

    config = ALoRAConfig(**({"record": "path"} | settings))
    data = token_data()
    whole = InOrder(
        lora_model(), training_arguments(output_dir=str(tmp_path / "a"), max_steps=5), train_dataset=data, alora=config
    )
    whole.train()
    args = training_arguments(output_dir=str(tmp_path / "b"), max_steps=5, save_strategy="steps", save_steps=1)
    with pytest.raises(KeyboardInterrupt):
        Interrupted(lora_model(), args, train_dataset=data, alora=config).train()
    resumed = InOrder(lora_model(), args, train_dataset=data, alora=config)
    resumed.train(resume_from_checkpoint=True)
    for name, omega in whole.importance.items():
        assert torch.equal(resumed.importance[name], omega), name


def test_a_torn_recorder_state_is_named(lora_model, token_data, training_arguments, tmp_path):
    args = training_arguments(output_dir=str(tmp_path), save_strategy="steps", save_steps=2)
    record(lora_model(), args, token_data())
    state = tmp_path / "checkpoint-2" / "importance_recorder.safetensors"
    state.write_bytes(state.read_bytes()[:-5])
    trainer = InOrder(lora_model(), args, train_dataset=token_data(), alora=ALoRAConfig(record="path"))
    with pytest.raises(ALoRAError, match="importance_recorder.safetensors is damaged"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_bad_settings_are_named():
    for bad, message in (
        ({"omega_device": "gpu"}, "omega_device='gpu'"),
        ({"fold_every": 0}, "fold_every=0"),
        ({"record_tokens": -5}, "record_tokens=-5"),
        ({"xi": 0.0}, "xi=0.0"),
    ):
        with pytest.raises(ALoRAError, match=message):
            ALoRAConfig(record="path", **bad)
