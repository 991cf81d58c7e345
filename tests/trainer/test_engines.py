"""Every engine and setting that a user may train with: the penalty counts once and the map is right, or it is refused."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed.fsdp import CPUOffloadPolicy

from alora_trainer import ALoRAConfig, ALoRAError, ALoRATrainer
from tests.importance.test_recorder import InOrder
from tests.importance.test_recording import Scaled
from tests.older_libraries import checkpointing
from tests.penalty.test_penalty import dense_penalty, made_map
from tests.tiny_training import move_factors

SGD = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, "max_steps": 1}


def difference_that_the_penalty_makes(model: Any, args: Any, data: Any, kind: type = InOrder, **ours: Any) -> Any:
    """One training without and one with a penalty: by parameter, how much further the second has gone; and its trainer."""
    importance = made_map(model)
    move_factors(model, 0.05)
    plain, held = copy.deepcopy(model), copy.deepcopy(model)
    kind(plain, args, train_dataset=data).train()
    config = ALoRAConfig(**({"lam": 0.3, "normalize": False} | ours))
    trainer = kind(held, args, train_dataset=data, importance=importance, alora=config)
    trainer.train()
    moved = {n: plain.get_parameter(n) - held.get_parameter(n) for n, p in model.named_parameters() if p.requires_grad}
    return moved, importance, trainer


def assert_once(model: Any, moved: dict[str, Any], importance: Any, *, atol: float = 1e-6) -> None:
    dense_penalty(model, importance, lam=0.3).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            expected = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            torch.testing.assert_close(moved[name], expected, rtol=1e-4, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


# ---- accumulation ----


def test_the_penalty_counts_once_on_streams_of_unknown_length(lora_model, token_data, training_arguments):
    model = lora_model(moved=True)
    args = training_arguments(gradient_accumulation_steps=4, **SGD)
    stream = token_data(items=8).to_iterable_dataset()
    moved, importance, _ = difference_that_the_penalty_makes(model, args, stream, ALoRATrainer)
    assert_once(model, moved, importance)


def test_a_stream_that_ends_within_a_window_makes_no_step_of_the_rest(lora_model, token_data, training_arguments):
    """The Trainer makes no step of it, so nothing is recorded and no penalty is added for it either."""
    model = lora_model(moved=True)
    importance = made_map(model)
    args = training_arguments(gradient_accumulation_steps=4, max_steps=2, learning_rate=1e-3)
    stream = token_data(items=10).to_iterable_dataset()  # five batches: one window and a batch, epoch after epoch
    config = ALoRAConfig(lam=0.3, record="path")
    trainer = ALoRATrainer(model, args, train_dataset=stream, importance=importance, alora=config)
    trainer.train()
    assert trainer.state.global_step == trainer.importance.info.steps == 2
    assert [log["loss"] > log["ce_loss"] for log in trainer.state.log_history if "ce_loss" in log].count(True) >= 1


# ---- clipping ----


def test_the_coupled_penalty_is_in_the_norm_that_is_clipped(lora_model, token_data, training_arguments):
    model = lora_model(moved=True)
    importance = made_map(model)
    move_factors(model, 0.05)
    data = token_data(items=2)
    whole = copy.deepcopy(model)
    ids, labels = torch.tensor(data["input_ids"]), torch.tensor(data["labels"])
    (whole(input_ids=ids, labels=labels).loss + dense_penalty(whole, importance, lam=0.3)).backward()
    norm = float(torch.stack([p.grad.norm() for p in whole.parameters() if p.grad is not None]).norm())
    args = training_arguments(**SGD | {"max_grad_norm": norm / 10})
    start = copy.deepcopy(model)
    config = ALoRAConfig(lam=0.3, normalize=False)
    trainer = InOrder(model, args, train_dataset=data, importance=importance, alora=config)
    trainer.train()
    assert trainer.state.log_history[0]["grad_norm"] == pytest.approx(norm, rel=1e-4)
    for name, parameter in whole.named_parameters():
        if parameter.requires_grad:
            moved = start.get_parameter(name) - model.get_parameter(name)
            torch.testing.assert_close(moved, parameter.grad / 10, rtol=1e-3, atol=1e-6)


def test_the_decoupled_penalty_is_outside_of_the_clipping(lora_model, token_data, training_arguments):
    """However hard the data's gradient is clipped, the pull towards theta* stays what it is."""
    norms, pulls = [], []
    for lam in (0.0, 0.3):
        model = lora_model(moved=True)
        importance = made_map(model)
        move_factors(model, 0.05)
        before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        args = training_arguments(**SGD | {"max_grad_norm": 1e-9, "learning_rate": 0.01})
        config = ALoRAConfig(lam=lam, application="decoupled", normalize=False)
        trainer = InOrder(model, args, train_dataset=token_data(items=2), importance=importance, alora=config)
        trainer.train()
        norms.append(trainer.state.log_history[0]["grad_norm"])
        pulls.append(max(float((model.get_parameter(n) - p).abs().max()) for n, p in before.items()))
    assert norms[0] == norms[1]
    assert pulls[0] < 1e-9 and pulls[1] > 1e-4


# ---- precision ----


@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_penalty_counts_once_under_an_fp16_loss_scaler(lora_model, token_data, training_arguments, accumulation):
    """A real scaler on the CPU, scaling by 1024: unscaled, the penalty would count a thousandth."""
    model = lora_model(moved=True)
    args = training_arguments(gradient_accumulation_steps=accumulation, **SGD)
    moved, importance, trainer = difference_that_the_penalty_makes(model, args, token_data(), Scaled)
    assert trainer.accelerator.scaler.get_scale() == 2.0**10
    assert_once(model, moved, importance)


@pytest.mark.parametrize("application", ["coupled", "decoupled"])
def test_an_overflowing_step_moves_and_pulls_nothing(lora_model, token_data, training_arguments, application):
    class Overflows(Scaled):
        overflowing = (1,)

    finals = []
    for steps in (1, 2):
        model = lora_model(moved=True)
        importance = made_map(model)
        move_factors(model, 0.05)
        args = training_arguments(**SGD | {"max_steps": steps, "learning_rate": 0.01})
        config = ALoRAConfig(lam=0.3, application=application)
        trainer = Overflows(model, args, train_dataset=token_data(), importance=importance, alora=config)
        trainer.train()
        finals.append([p.detach().clone() for p in model.parameters() if p.requires_grad])
    assert trainer.accelerator.optimizer_step_was_skipped
    assert all(torch.equal(one, other) for one, other in zip(*finals, strict=True))


def test_bf16_autocast_leaves_the_penalty_in_full_precision(lora_model, token_data, training_arguments):
    """The data's gradients are bf16's, and the same in both trainings; the penalty's are float32's."""
    model = lora_model(moved=True)
    args = training_arguments(bf16=True, **SGD)
    moved, importance, trainer = difference_that_the_penalty_makes(model, args, token_data())
    assert_once(model, moved, importance)
    expected = float(dense_penalty(model, importance, lam=0.3).detach())
    assert trainer.state.log_history[0]["penalty"] == pytest.approx(expected, rel=1e-5)


def test_a_bf16_model_is_recorded_and_held(lora_model, token_data, training_arguments):
    model = lora_model(moved=True, dtype=torch.bfloat16)
    args = training_arguments(bf16=True, optim="adamw_torch", learning_rate=0.01)
    recorder = InOrder(copy.deepcopy(model), args, train_dataset=token_data(), alora=ALoRAConfig(record="path"))
    recorder.train()
    assert all(o.dtype == torch.float32 and float(o.max()) > 0 for o in recorder.importance.values())
    tuner = InOrder(model, args, train_dataset=token_data(), importance=recorder.importance, alora=ALoRAConfig())
    tuner.train()
    assert tuner.state.log_history[-2]["penalty"] > 0


# ---- gradient checkpointing, compilation, dropout, adapters, other trainable tensors ----


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_neither_map_nor_training(lora_model, token_data, training_arguments, reentrant):
    maps, finals = [], []
    for on in (False, True):
        model = lora_model(moved=True)
        if reentrant:
            model.enable_input_require_grads()
        args = training_arguments(
            **checkpointing(on, use_reentrant=reentrant),
            learning_rate=0.01,
        )
        config = ALoRAConfig(record="path", lam=0.3)
        trainer = InOrder(model, args, train_dataset=token_data(), importance=made_map(model), alora=config)
        trainer.train()
        maps.append(trainer.importance)
        finals.append(trainer.model.state_dict())
    for name, omega in maps[0].items():
        torch.testing.assert_close(maps[1][name], omega, rtol=1e-4, atol=1e-5)
    for name, tensor in finals[0].items():
        torch.testing.assert_close(finals[1][name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("estimator", ["path", "paper"])
def test_torch_compile_changes_neither_map_nor_training(lora_model, token_data, training_arguments, estimator):
    """Through Dynamo and AOTAutograd; the code that Inductor would make of the graph is not ours to test."""
    maps, parts = [], []
    for on in (False, True):
        model = lora_model(moved=True)
        args = training_arguments(torch_compile=on, learning_rate=0.01, max_steps=2)
        if on:
            args = training_arguments(torch_compile_backend="aot_eager", learning_rate=0.01, max_steps=2)
        config = ALoRAConfig(record=estimator, lam=0.3)
        trainer = InOrder(model, args, train_dataset=token_data(), importance=made_map(model), alora=config)
        trainer.train()
        assert hasattr(trainer.model_wrapped, "_orig_mod") == on
        maps.append(trainer.importance)
        parts.append([log["penalty"] for log in trainer.state.log_history if "penalty" in log])
    assert set(maps[0]) == set(maps[1])
    for name, omega in maps[0].items():
        torch.testing.assert_close(maps[1][name], omega, rtol=1e-3, atol=1e-5)
    assert parts[0] == pytest.approx(parts[1], rel=1e-4)


def test_lora_dropout_is_the_same_with_and_without_us(lora_model, token_data, training_arguments):
    """Recording and protecting draw no random numbers: the same dropout masks come, and the penalty is on the weights."""
    model = lora_model(moved=True, lora_dropout=0.3)
    moved, importance, _ = difference_that_the_penalty_makes(model, training_arguments(**SGD), token_data())
    assert_once(model, moved, importance)


def test_only_the_active_of_several_adapters_is_held(lora_model, token_data, training_arguments):
    from peft import LoraConfig

    model = lora_model(moved=True)
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    moved, importance, trainer = difference_that_the_penalty_makes(model, training_arguments(**SGD), token_data())
    assert {weight.adapter for weight in trainer._weights} == {"default"}
    assert_once(model, moved, importance)
    assert not any(".other." in name for name in moved)


def test_modules_to_save_move_freely_and_are_named(lora_model, token_data, training_arguments, caplog):
    model = lora_model(moved=True, modules_to_save=["lm_head"])
    with caplog.at_level("WARNING", logger="alora_trainer"):
        moved, importance, _ = difference_that_the_penalty_makes(model, training_arguments(**SGD), token_data())
    assert "nothing holds 1 trainable tensors, such as" in caplog.text and "lm_head" in caplog.text
    assert any("lm_head" in name for name in moved)
    assert_once(model, moved, importance)


def test_tied_embeddings_are_held_on_the_side_that_is_adapted(token_data, training_arguments):
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=40, n_positions=32, bos_token_id=0, eos_token_id=0)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    lora = LoraConfig(r=3, target_modules=["wte", "c_attn"], fan_in_fan_out=True)
    model = get_peft_model(GPT2LMHeadModel(config), lora)
    move_factors(model, 0.2)
    recorder = InOrder(
        copy.deepcopy(model), training_arguments(learning_rate=0.01), train_dataset=token_data(),
        alora=ALoRAConfig(record="path"),
    )  # fmt: skip
    recorder.train()
    assert set(recorder.importance) == {"transformer.wte", "transformer.h.0.attn.c_attn"}
    assert recorder.importance["transformer.wte"].shape == (16, 40)
    moved, importance, _ = difference_that_the_penalty_makes(model, training_arguments(**SGD), token_data())
    assert_once(model, moved, importance)


# ---- a trainer of one's own, in two lines ----


def test_a_trainer_of_ones_own_is_protected_in_two_lines(lora_model, token_data, training_arguments):
    from transformers import Trainer

    from alora_trainer import ALoRAMixin

    class MyTrainer(Trainer):
        """Halves the loss, and says so to nobody."""

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            return (result[0] / 2, result[1]) if return_outputs else result / 2

    class MyProtectedTrainer(ALoRAMixin, MyTrainer):
        pass

    model = lora_model(moved=True)
    args = training_arguments(gradient_accumulation_steps=3, train_sampling_strategy="sequential", **SGD)
    moved, importance, _ = difference_that_the_penalty_makes(model, args, token_data(), MyProtectedTrainer)
    assert_once(model, moved, importance)


# ---- what is refused ----


def test_engines_that_would_go_wrong_silently_are_refused(lora_model, token_data, training_arguments):
    model = lora_model(moved=True)
    importance = made_map(model)

    def attempt(change: dict[str, Any], *, config: ALoRAConfig, held: bool = True, **settings: Any) -> None:
        class Changed(ALoRATrainer):
            def _check(self) -> None:
                for path, value in change.items():
                    target, _, name = path.rpartition(".")
                    owner: Any = self
                    for part in filter(None, target.split(".")):
                        owner = getattr(owner, part)
                    setattr(owner, name, value)
                super()._check()

        given = importance if held else None
        Changed(model, training_arguments(**settings), train_dataset=token_data(), importance=given, alora=config)

    def deepspeed(stage: int) -> dict[str, Any]:
        plugin = SimpleNamespace(zero_stage=stage)
        return {"is_deepspeed_enabled": True, "accelerator": _with_state(deepspeed_plugin=plugin)}

    def fsdp(version: int, **settings: Any) -> dict[str, Any]:
        plugin = SimpleNamespace(fsdp_version=version, **settings)
        return {"is_fsdp_enabled": True, "accelerator": _with_state(fsdp_plugin=plugin)}

    records, holds = ALoRAConfig(record="path"), ALoRAConfig(lam=0.3)
    decoupled, auto = ALoRAConfig(application="decoupled"), ALoRAConfig(lam="auto")
    cases: list[tuple[dict[str, Any], ALoRAConfig, dict[str, Any], str]] = [
        ({"args._n_gpu": 2}, holds, {}, "DataParallel.*launch with torchrun"),
        (
            deepspeed(3),
            ALoRAConfig(full_parameters=True),
            {},
            "ZeRO-3 would bring the whole model.*use FSDP2, or ZeRO-2",
        ),
        (deepspeed(2), ALoRAConfig(record="path", full_parameters=True), {}, "full tuning is not recorded.*use FSDP2"),
        (deepspeed(2), ALoRAConfig(record="exact"), {}, "record='exact'.*use record='path'"),
        (deepspeed(2), records, {"bf16": True}, "rounded copies of the weights.*record in float32"),
        (deepspeed(2), decoupled, {}, "application='decoupled'.*use application='coupled'"),
        (deepspeed(1), auto, {}, "lam='auto' is not supported under DeepSpeed.*give lam a number"),
        (fsdp(1), holds, {}, "FSDP 1.*'version': 2"),
        (fsdp(2, cpu_offload=CPUOffloadPolicy()), holds, {}, "cpu_offload to False.*storage_device='cpu'"),
        (fsdp(2, activation_checkpointing=True), holds, {}, "empty adapter.*set gradient_checkpointing=True"),
        ({"is_distributed_loading_by_transformers": True}, holds, {}, "tp_plan.*load it whole"),
        ({}, records, {"optim": "galore_adamw_layerwise"}, "galore_adamw_layerwise.*use 'adamw_torch'"),
        (
            {},
            ALoRAConfig(record="exact"),
            {"torch_compile_backend": "aot_eager"},
            "record='exact'.*torch_compile=False",
        ),
        ({}, holds, {"optim": "lomo"}, "lomo.*inside the backward pass"),
    ]
    for change, config, settings, message in cases:
        with pytest.raises(ALoRAError, match=message):
            attempt(change, config=config, **settings)
    # What is beside them works.
    for stage in (1, 2, 3):
        attempt(deepspeed(stage), config=holds)
        attempt(deepspeed(stage), config=records)
    for config in (records, decoupled, auto, ALoRAConfig(record="exact")):
        attempt(fsdp(2, cpu_offload=None, activation_checkpointing=False), config=config)


def _with_state(**plugins: Any) -> Any:
    return SimpleNamespace(state=SimpleNamespace(**plugins), parallelism_config=None)


def test_parallelism_within_a_model_is_refused(lora_model, token_data, training_arguments):
    from alora_trainer.trainer.engines import check_engine

    trainer = ALoRATrainer(lora_model(), training_arguments(), train_dataset=token_data())
    trainer.accelerator = SimpleNamespace(
        parallelism_config=SimpleNamespace(tp_enabled=True, cp_enabled=False, sp_enabled=True)
    )
    with pytest.raises(ALoRAError, match=r"parallelism \(tp, sp\) are not supported: use data parallelism"):
        check_engine(trainer, ALoRAConfig(record="path"))


@pytest.mark.parametrize(
    ("module", "kind"),
    [("gptq", "GPTQLoraLinear"), ("awq", "AwqLoraLinear"), ("torchao", "TorchaoLoraLinear"), ("hqq", "HqqLoraLinear")],
)
def test_kinds_of_quantisation_that_are_not_tested_are_refused(
    lora_model, token_data, training_arguments, module, kind
):
    import importlib

    importlib.import_module(
        f"peft.tuners.lora.{module}"
    )  # PEFT has such a module; its layers need packages that we have not
    model = lora_model()
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    layer.__class__ = type(kind, (type(layer),), {"__module__": f"peft.tuners.lora.{module}"})
    with pytest.raises(ALoRAError, match=f"q_proj is a {kind}.*load the base with bitsandbytes"):
        ALoRATrainer(model, training_arguments(), train_dataset=token_data(), alora=ALoRAConfig(record="path"))
