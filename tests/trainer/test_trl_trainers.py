"""TRL's trainers: what they train is their own loss plus the penalty, once, whatever the accumulation."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

import alora_trainer
from alora_trainer import ALoRAConfig, ALoRADPOTrainer, ALoRAError, ALoRASFTTrainer, ImportanceMap
from alora_trainer.importance.recording.curvature import estimate_curvature
from alora_trainer.trainer import initializing
from alora_trainer.weights.adapted import adapted_weights
from alora_trainer.weights.theta import BaseTheta
from tests.conftest import move_factors
from tests.penalty.test_penalty import dense_penalty, made_map
from tests.tiny_tokenizer import TEXT, make_tokenizer

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'] }}{{ eos_token }}{% endgeneration %}{% else %}{{ message['content'] }}\n{% endif %}{% endfor %}"
)
WORDS = TEXT.split()
ONE_STEP = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, "max_steps": 1, "lr_scheduler_type": "constant"}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    made = make_tokenizer()
    made.chat_template = CHAT_TEMPLATE
    return made


@pytest.fixture
def model(tokenizer: Any) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=len(tokenizer), max_position_embeddings=128, bos_token_id=0, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    made = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"]))
    move_factors(made, 0.2)
    return made


def sentence(i: int, words: int) -> str:
    return " ".join(WORDS[(i * 5 + j) % len(WORDS)] for j in range(words))


def texts(rows: int) -> Dataset:
    return Dataset.from_dict({"text": [sentence(i, 5 + i % 7) for i in range(rows)]})


def completions(rows: int) -> Dataset:
    return Dataset.from_dict(
        {"prompt": [sentence(i, 4) for i in range(rows)], "completion": [" " + sentence(i + 3, 3) for i in range(rows)]}
    )


def chats(rows: int) -> Dataset:
    talk = [
        [{"role": "user", "content": sentence(i, 4)}, {"role": "assistant", "content": sentence(i + 1, 5)}]
        for i in range(rows)
    ]
    return Dataset.from_dict({"messages": talk})


def preferences(rows: int) -> Dataset:
    return Dataset.from_dict(
        {
            "prompt": [sentence(i, 4) for i in range(rows)],
            "chosen": [" " + sentence(i + 3, 3) for i in range(rows)],
            "rejected": [" " + sentence(i + 7, 4) for i in range(rows)],
        }
    )


def sft(tmp_path: Path, tokenizer: Any) -> Callable[..., ALoRASFTTrainer]:
    from trl import SFTConfig

    def build(model: Any, data: Any, *, importance: Any = None, alora: Any = None, **settings: Any) -> ALoRASFTTrainer:
        quiet = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none"}
        quiet |= {"save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, "max_length": 32}
        args = SFTConfig(output_dir=str(tmp_path / "sft"), **(quiet | settings))
        return ALoRASFTTrainer(
            model, args, train_dataset=data, processing_class=tokenizer, importance=importance, alora=alora
        )

    return build


def dpo(tmp_path: Path, tokenizer: Any) -> Callable[..., ALoRADPOTrainer]:
    from trl import DPOConfig

    def build(model: Any, data: Any, *, importance: Any = None, alora: Any = None, **settings: Any) -> ALoRADPOTrainer:
        quiet = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none"}
        quiet |= {"save_strategy": "no", "logging_steps": 1, "disable_tqdm": True}
        args = DPOConfig(output_dir=str(tmp_path / "dpo"), **(quiet | settings))
        return ALoRADPOTrainer(
            model, args=args, train_dataset=data, processing_class=tokenizer, importance=importance, alora=alora
        )

    return build


CASES = {
    "sft": (sft, texts, {}),
    "sft packed": (sft, texts, {"packing": True}),
    "sft wrapped": (sft, texts, {"packing": True, "packing_strategy": "wrapped"}),
    "sft completion only": (sft, completions, {}),
    "sft chat, assistant only": (sft, chats, {"assistant_only_loss": True}),
    "sft defaults: bf16, checkpointing": (sft, texts, {"bf16": True, "gradient_checkpointing": True}),
    "dpo": (dpo, preferences, {}),
}


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_one_step_moves_by_the_trainers_own_loss_and_the_penalty_once(tmp_path, tokenizer, model, case, accumulation):
    trainer_kind, rows, settings = CASES[case]
    build = trainer_kind(tmp_path, tokenizer)
    importance = made_map(model)
    move_factors(model, 0.05)
    plain, held = copy.deepcopy(model), copy.deepcopy(model)
    count = 2 * accumulation
    settings = ONE_STEP | {"per_device_train_batch_size": 2, "gradient_accumulation_steps": accumulation} | settings
    if settings.get("packing"):
        count *= 8  # enough to fill several packs
    build(plain, rows(count), **settings).train()
    trainer = build(held, rows(count), importance=importance, alora=ALoRAConfig(lam=0.3, normalize=False), **settings)
    trainer.train()
    expected = dense_penalty(model, importance, lam=0.3)
    expected.backward()
    bf16 = settings.get("bf16", False)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            difference = plain.get_parameter(name) - held.get_parameter(name)
            torch.testing.assert_close(difference, parameter.grad, rtol=1e-4, atol=2e-3 if bf16 else 2e-6)
    logged = trainer.state.log_history[0]
    assert logged["penalty"] == pytest.approx(float(expected.detach()), rel=1e-5)
    assert logged["loss"] == pytest.approx(logged["ce_loss"] + logged["penalty"], rel=1e-3)


def test_sft_records_what_the_plain_trainer_would_record_on_the_same_tokens(tmp_path, tokenizer, model):
    """Padding aside, SFT on text is causal language modelling: the two recordings agree."""
    from transformers import DataCollatorForLanguageModeling, TrainingArguments

    from alora_trainer import ALoRATrainer

    data = texts(8)
    settings: dict[str, Any] = {"learning_rate": 1.0, "max_steps": 3, "lr_scheduler_type": "constant"}
    settings |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "optim": "sgd"}
    settings["train_sampling_strategy"] = "sequential"
    recorded = sft(tmp_path, tokenizer)(
        copy.deepcopy(model), data, alora=ALoRAConfig(record="path"), max_length=None, **settings
    )
    recorded.train()
    tokens = data.map(lambda row: tokenizer(row["text"] + tokenizer.eos_token), remove_columns=["text"])
    args = TrainingArguments(str(tmp_path / "plain"), use_cpu=True, report_to="none", save_strategy="no", **settings)
    plain = ALoRATrainer(
        copy.deepcopy(model), args, train_dataset=tokens, alora=ALoRAConfig(record="path"),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )  # fmt: skip
    plain.train()
    for name, omega in plain.importance.items():
        assert omega.max() > 0
        torch.testing.assert_close(recorded.importance[name], omega, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("estimator", ["path", "exact"])
def test_dpo_records_and_then_holds_the_trained_adapter_alone(tmp_path, tokenizer, model, estimator):
    build = dpo(tmp_path, tokenizer)
    settings: dict[str, Any] = {"learning_rate": 0.02, "max_steps": 2, "per_device_train_batch_size": 2}
    recorder = build(copy.deepcopy(model), preferences(4), alora=ALoRAConfig(record=estimator), **settings)
    recorder.train()
    assert "ref" in recorder.model.peft_config
    assert {weight.adapter for weight in recorder._weights} == {"default"}
    assert len(recorder.importance) == 4 and all(float(omega.max()) > 0 for omega in recorder.importance.values())
    assert not any(".ref." in key for key in recorder.importance.adapter_state)
    tuner = build(
        copy.deepcopy(model), preferences(4), importance=recorder.importance, alora=ALoRAConfig(lam=1.0), **settings
    )
    tuner.train()
    logs = [log for log in tuner.state.log_history if "penalty" in log]
    assert len(logs) == 2 and logs[-1]["penalty"] > 0


def test_lambda_zero_is_plain_sft_bit_for_bit(tmp_path, tokenizer, model):
    build = sft(tmp_path, tokenizer)
    settings: dict[str, Any] = {"learning_rate": 0.02, "max_steps": 3, "per_device_train_batch_size": 2}
    importance = made_map(model)
    plain, ours = copy.deepcopy(model), copy.deepcopy(model)
    build(plain, texts(8), **settings).train()
    build(ours, texts(8), importance=importance, alora=ALoRAConfig(lam=0.0), **settings).train()
    for (name, a), (_, b) in zip(plain.named_parameters(), ours.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_sft_wraps_the_model_itself(tmp_path, tokenizer, model):
    """With peft_config, SFTTrainer makes the adapter: it is recorded like any other."""
    from peft import LoraConfig
    from trl import SFTConfig

    args = SFTConfig(
        str(tmp_path), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", max_steps=1,
        save_strategy="no", per_device_train_batch_size=2,
    )  # fmt: skip
    trainer = ALoRASFTTrainer(
        model.merge_and_unload(), args, train_dataset=texts(4), processing_class=tokenizer,
        peft_config=LoraConfig(r=2, target_modules=["o_proj"]), alora=ALoRAConfig(record="path"),
    )  # fmt: skip
    trainer.train()
    assert list(trainer.importance) == [f"model.layers.{i}.self_attn.o_proj" for i in range(2)]


@pytest.mark.parametrize("start", [None, "recorded"])
def test_a_fresh_adapter_is_no_start_for_a_recorded_map(tmp_path, tokenizer, model, start):
    """The natural call: a model by name, peft_config and a map; its training would begin at the base and not at theta*."""
    from peft import LoraConfig
    from trl import SFTConfig

    importance = made_map(model)
    model.unload().save_pretrained(tmp_path / "base")
    args = SFTConfig(
        str(tmp_path / "out"), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", max_steps=1,
        save_strategy="steps", save_steps=1, per_device_train_batch_size=2,
    )  # fmt: skip

    def trainer(**settings: Any) -> ALoRASFTTrainer:
        config = ALoRAConfig(lam=0.1, **settings)
        return ALoRASFTTrainer(
            str(tmp_path / "base"), args, train_dataset=texts(4), processing_class=tokenizer, importance=importance,
            peft_config=LoraConfig(r=3, target_modules=["q_proj", "v_proj"]), alora=config,
        )  # fmt: skip

    with pytest.raises(ALoRAError, match=r"from_pretrained\(base, MAP, is_trainable=True\) and no peft_config, or say"):
        trainer(**({} if start is None else {"start": start})).train()
    bare = trainer(start="bare")
    bare.train()
    assert "base" in str(bare.model.get_base_model().config._name_or_path)
    # A checkpoint has the adapter that the training had: whatever the model was made with is replaced.
    args.max_steps = 2
    assert trainer(**({} if start is None else {"start": start})).train(resume_from_checkpoint=True).global_step == 2


def test_trl_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """That nothing imports it before it is used, tests/test_house.py sees."""
    monkeypatch.setitem(sys.modules, "trl", None)
    for name in ("sft", "dpo"):
        monkeypatch.delitem(sys.modules, f"alora_trainer.trainer.{name}")
    for name in ("ALoRASFTTrainer", "ALoRADPOTrainer"):
        with pytest.raises(ALoRAError, match=f"{name} needs TRL: pip install trl"):
            getattr(alora_trainer, name)


@pytest.mark.parametrize("case", ["sft packed", "sft chat, assistant only", "sft defaults: bf16, checkpointing", "dpo"])
@pytest.mark.parametrize("kind", ["natural_gradient", "contrastive"])
def test_a_fresh_adapter_starts_where_the_trainers_own_loss_says(tmp_path, tokenizer, model, case, kind):
    trainer_kind, rows, settings = CASES[case]
    fresh = get_fresh(model)
    settings = ONE_STEP | {"per_device_train_batch_size": 2} | settings
    alora = ALoRAConfig(lam=0, init_adapter=kind, init_items=6, freeze_a=True)
    trainer = trainer_kind(tmp_path, tokenizer)(fresh, rows(8), importance=curvature_of(fresh), alora=alora, **settings)
    default = {weight.name: weight.a.clone() for weight in adapted_weights(trainer.model)}
    trainer.train()
    for weight in adapted_weights(trainer.model):
        assert weight.b.any() and not torch.allclose(weight.a.float(), default[weight.name].float(), rtol=0.1)
    facts = trainer.publication().initialized
    assert facts["kind"] == kind and facts["items"] == 6 and facts["tokens"] > 2 * 6
    # What was looked at is none of what the evaluation measured.
    assert not any(trainer._metrics["eval"].values())


def test_preferences_are_counted_as_items_not_as_rows(tmp_path, tokenizer, model, monkeypatch):
    """TRL lays the chosen and the rejected answers in one batch: all items that were asked for are looked at all the same."""
    trainer_kind, rows, settings = CASES["dpo"]
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(initializing, "choose_directions", _looked_at(seen, initializing.choose_directions))
    fresh = get_fresh(model)
    trainer = trainer_kind(tmp_path, tokenizer)(
        fresh, rows(8), importance=curvature_of(fresh), alora=ALoRAConfig(lam=0, init_adapter="contrastive", init_items=8),
        **(ONE_STEP | {"per_device_train_batch_size": 2} | settings),
    )  # fmt: skip
    trainer.train()
    wanted = torch.cat([batch["input_ids"].flatten() for batch in trainer.get_train_dataloader()])
    assert sum(len(batch) for batch in seen) == 2 * 8 and trainer.publication().initialized["items"] == 8
    assert set(torch.cat([batch.flatten() for batch in seen]).tolist()) == set(wanted.tolist())


def _looked_at(seen: list[torch.Tensor], choose: Any) -> Any:
    def choosing(weights: Any, importance: Any, domain: Any, **settings: Any) -> Any:
        seen.extend(batch["input_ids"].cpu() for batch in domain.batches)
        return choose(weights, importance, domain, **settings)

    return choosing


def get_fresh(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        copy.deepcopy(model).unload(), LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"])
    )


def curvature_of(model: Any) -> ImportanceMap:
    ids = torch.arange(64).remainder(model.config.vocab_size).view(4, 16)
    estimate = estimate_curvature(model, [{"input_ids": ids}])
    theta = BaseTheta({name: each.shape for name, each in estimate.importance.items()})
    return ImportanceMap(estimate.importance, theta)
