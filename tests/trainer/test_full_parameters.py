"""Full tuning: Synaptic Intelligence and EWC's penalty on the plain weights, against dense float64 references."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from alora_trainer import ALoRAConfig, ALoRAError, ALoRATrainer, ImportanceMap
from alora_trainer.artefact.cards.tuning import TUNING_FILE
from alora_trainer.artefact.files import REFERENCE_FILE
from alora_trainer.artefact.hub.download import pull
from alora_trainer.artefact.hub.inspect import describe
from alora_trainer.artefact.importance_map import load_reference
from alora_trainer.artefact.reading import check_reference, verify_map
from alora_trainer.basics.safetensors_writer import tensor_digest
from alora_trainer.weights.full_weight import full_weights
from alora_trainer.weights.parameterization import Parameterization
from alora_trainer.weights.reference import FullReference
from alora_trainer.weights.theta import FullTheta
from tests.importance.test_recorder import InOrder
from tests.tiny_map import change_config, make_map


@pytest.fixture
def full_model(_tiny_llama: Any) -> Any:
    """The tiny Llama itself, all of it trainable."""
    return copy.deepcopy(_tiny_llama)


def made_map(model: Any, dtype: torch.dtype = torch.float32) -> ImportanceMap:
    generator = torch.Generator().manual_seed(5)
    weights = full_weights(model)
    return ImportanceMap(
        {w.name: torch.rand(w.shape, generator=generator, dtype=torch.float64).to(dtype) for w in weights},
        FullTheta({w.name: FullReference(w.matrices[0].clone()) for w in weights}),
    )


def move(model: Any) -> None:
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


def synaptic_intelligence(model: Any, data: Any, *, lr: float, steps: int, xi: float, optimizer: str) -> dict[str, Any]:
    """Zenke, Poole and Ganguli 2017, written out: w = -sum g D over an ordinary training, in float64."""
    model = copy.deepcopy(model).double()
    named = {name.removesuffix(".weight"): p for name, p in model.named_parameters()}
    kind = torch.optim.SGD if optimizer == "sgd" else torch.optim.AdamW
    stepper = kind(named.values(), lr=lr, weight_decay=0.0)
    start = {name: p.detach().clone() for name, p in named.items()}
    w = {name: torch.zeros_like(p) for name, p in named.items()}
    for t in range(steps):
        rows = data.select(range(2 * t, 2 * t + 2))
        ids, labels = torch.tensor(rows["input_ids"]), torch.tensor(rows["labels"])
        stepper.zero_grad()
        logits = model(input_ids=ids).logits
        cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100).backward()
        before = {name: (p.detach().clone(), p.grad.clone()) for name, p in named.items()}
        torch.nn.utils.clip_grad_norm_(named.values(), 0.5)
        stepper.step()
        for name, p in named.items():
            w[name] -= before[name][1] * (p.detach() - before[name][0])
    return {name: w[name].clamp(min=0) / ((p.detach() - start[name]) ** 2 + xi) for name, p in named.items()}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw_torch"])
def test_the_recording_is_synaptic_intelligence(full_model, token_data, training_arguments, optimizer):
    data = token_data()
    model = full_model.double()
    expected = synaptic_intelligence(model, data, lr=0.01, steps=3, xi=1e-3, optimizer=optimizer)
    args = training_arguments(optim=optimizer, learning_rate=0.01, max_steps=3, max_grad_norm=0.5)
    trainer = InOrder(model, args, train_dataset=data, alora=ALoRAConfig(record="path", full_parameters=True))
    trainer.train()
    assert set(trainer.importance) == set(expected)
    for name, omega in expected.items():
        got = trainer.importance[name].view(omega.shape)
        assert omega.max() > 0, name
        assert float((got - omega).norm() / omega.norm()) < 1e-4, name


def test_paper_and_path_are_one_under_plain_sgd(full_model, token_data, training_arguments):
    maps = []
    for estimator in ("paper", "path"):
        args = training_arguments(optim="sgd", max_grad_norm=0.0)
        config = ALoRAConfig(record=estimator, full_parameters=True)
        trainer = InOrder(copy.deepcopy(full_model).double(), args, train_dataset=token_data(), alora=config)
        trainer.train()
        maps.append(trainer.importance)
    for name, omega in maps[0].items():
        torch.testing.assert_close(maps[1][name], omega, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_one_step_moves_by_loss_and_penalty(full_model, token_data, training_arguments, accumulation):
    """One SGD step of learning rate 1: data gradient plus 2 lambda w_l Omega (theta - theta*), once."""
    importance = made_map(full_model)
    move(full_model)
    plain, held = copy.deepcopy(full_model), copy.deepcopy(full_model)
    settings = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, "max_steps": 1}
    args = training_arguments(gradient_accumulation_steps=accumulation, **settings)
    InOrder(plain, args, train_dataset=token_data()).train()
    config = ALoRAConfig(lam=0.3, normalize=False, full_parameters=True)
    trainer = InOrder(held, args, train_dataset=token_data(), importance=importance, alora=config)
    trainer.train()
    value = 0.0
    for weight in full_weights(full_model):
        omega, theta = importance[weight.name], weight.matrices[0]
        factor = 0.3 * omega.norm()
        drift = theta - importance.reference[weight.name].weight
        value += float(factor * (omega * drift**2).sum())
        moved = plain.get_parameter(_name(full_model, weight)) - held.get_parameter(_name(full_model, weight))
        torch.testing.assert_close(moved.view(omega.shape), 2 * factor * omega * drift, rtol=1e-4, atol=1e-6)
    assert trainer.state.log_history[0]["penalty"] == pytest.approx(value, rel=1e-5)


def _name(model: Any, weight: Any) -> str:
    return next(name for name, p in model.named_parameters() if p is weight.parameter)


def test_the_decoupled_pull_is_the_exact_minimum_and_stable(full_model):
    from alora_trainer.penalty import QuadraticPenalty

    importance = made_map(full_model)
    move(full_model)
    before = {w.name: w.copy()[0] for w in full_weights(full_model)}
    weights = full_weights(full_model)
    rates = {id(p): 0.1 for w in weights for p in w.parameters}
    penalty = QuadraticPenalty(weights, importance, lam=2.0, layer_weights="none", normalize=False)
    value = float(penalty.evaluate().value)
    assert float(penalty.pull(rates).value) == pytest.approx(value, rel=1e-6)
    for weight in weights:
        omega, start = importance[weight.name], importance.reference[weight.name].weight
        expected = start + (before[weight.name] - start) / (1 + 2 * 0.1 * 2.0 * omega)
        torch.testing.assert_close(weight.matrices[0], expected, rtol=1e-5, atol=1e-7)
    penalty.lam = 1e30
    penalty.pull(rates)
    assert max(penalty.drift().values()) < 1e-5


def test_recorded_then_held(full_model, token_data, training_arguments):
    """Stage A, then B with a large lambda: the weights stay, and with lambda 0 it is plain training bit for bit."""
    from transformers import Trainer

    recorder = ALoRATrainer(
        full_model, training_arguments(learning_rate=1e-3), train_dataset=token_data(),
        alora=ALoRAConfig(record="path", full_parameters=True),
    )  # fmt: skip
    recorder.train()
    args = training_arguments(learning_rate=1e-3, max_steps=8)
    drifts, states = {}, {}
    for lam in (0.0, 1e3):
        trainer = ALoRATrainer(
            copy.deepcopy(full_model), args, train_dataset=token_data(seed=9), importance=recorder.importance,
            alora=ALoRAConfig(lam=lam, full_parameters=True),
        )  # fmt: skip
        trainer.train()
        drifts[lam] = [log["drift"] for log in trainer.state.log_history if "drift" in log][-1]
        states[lam] = trainer.model.state_dict()
    assert drifts[1e3] < 0.9 * drifts[0.0]
    plain = copy.deepcopy(full_model)
    Trainer(plain, args, train_dataset=token_data(seed=9)).train()
    assert all(torch.equal(tensor, states[0.0][name]) for name, tensor in plain.state_dict().items())


def test_tied_embeddings_are_one_weight(token_data, training_arguments):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=40, n_positions=32, bos_token_id=0, eos_token_id=0)
    trainer = ALoRATrainer(
        GPT2LMHeadModel(config), training_arguments(), train_dataset=token_data(),
        alora=ALoRAConfig(record="path", full_parameters=True),
    )  # fmt: skip
    trainer.train()
    assert "transformer.wte" in trainer.importance and "lm_head" not in trainer.importance
    assert trainer.importance["transformer.h.0.attn.c_attn.bias"].shape == (1, 48)


def test_what_does_not_go_together_is_refused(full_model, lora_model, token_data, training_arguments):
    common = {"train_dataset": token_data()}
    with pytest.raises(ALoRAError, match="record='exact' is for LoRA"):
        ALoRAConfig(record="exact", full_parameters=True)
    with pytest.raises(ALoRAError, match="anchor='base' is for LoRA"):
        ALoRAConfig(anchor="base", full_parameters=True)
    with pytest.raises(ALoRAError, match="say full_parameters=True"):
        ALoRATrainer(full_model, training_arguments(), alora=ALoRAConfig(record="path"), **common)
    with pytest.raises(ALoRAError, match="has a PEFT adapter"):
        config = ALoRAConfig(record="path", full_parameters=True)
        ALoRATrainer(lora_model(), training_arguments(), alora=config, **common)
    with pytest.raises(ALoRAError, match="recorded for whole weights"):
        ALoRATrainer(lora_model(), training_arguments(), importance=made_map(full_model), alora=ALoRAConfig(), **common)


def test_a_map_on_disk_is_the_map_in_memory(full_model, tmp_path):
    importance = made_map(full_model).with_info(base_model="tiny-org/tiny-llama", estimator="path")
    importance.save_pretrained(tmp_path / "map", storage=["float32", "log8"])
    names = {path.name for path in (tmp_path / "map").iterdir()}
    assert "reference.safetensors" in names and not {"adapter_config.json", "adapter_model.safetensors"} & names
    again = ImportanceMap.from_pretrained(tmp_path / "map")
    assert (
        again.parameterization is Parameterization.FULL
        and again.adapter_config is None
        and again.info.base_model == "tiny-org/tiny-llama"
    )
    for name in importance:
        assert torch.equal(again[name], importance[name])
        assert torch.equal(again.reference[name].weight, importance.reference[name].weight)
    assert len(again.check_model(full_model, full_parameters=True)) == len(again)
    block = ImportanceMap.from_pretrained(tmp_path / "map", layers=[1], storage="log8")
    assert block.storage == "log8" and set(block) == {name for name in importance if ".1." in name} == set(
        block.reference
    )
    assert set(importance.select([1])) == set(block)
    card = (tmp_path / "map" / "README.md").read_text()
    assert "load_reference(model, importance)" in card and "full_parameters=True" in card and "PeftModel" not in card
    assert verify_map(tmp_path / "map").parameterization is Parameterization.FULL
    assert "theta*" in describe(str(tmp_path / "map"))


def test_a_training_can_start_at_a_maps_weights(full_model, lora_model, tmp_path):
    importance = made_map(full_model)
    start = {name: tensor.clone() for name, tensor in full_model.state_dict().items()}
    importance.save_pretrained(tmp_path / "map")
    move(full_model)
    load_reference(full_model, tmp_path / "map")
    assert all(torch.equal(tensor, start[name]) for name, tensor in full_model.state_dict().items())
    with pytest.raises(ALoRAError, match="has no model.layers.1"):
        from transformers import LlamaForCausalLM

        config = copy.deepcopy(full_model.config)
        config.num_hidden_layers = 1
        load_reference(LlamaForCausalLM(config), importance)
    with pytest.raises(ALoRAError, match="a training without adapters"):
        check_reference(tmp_path / "map")
    with pytest.raises(ALoRAError, match="recorded with a LoRA adapter"):
        load_reference(full_model, make_map())


def _forge(folder, change):
    """Change the reference's tensors as a forger would: with all checksums and sizes right."""
    path = folder / REFERENCE_FILE
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})

    def state(config):
        for name, tensor in tensors.items():
            if name in config["reference"]:
                config["reference"][name]["sha256"] = tensor_digest(tensor)
        config["files"][REFERENCE_FILE] = path.stat().st_size

    change_config(folder, state)


NAME = "model.layers.0.self_attn.q_proj"
DAMAGE = {
    "missing": (lambda f: (f / REFERENCE_FILE).unlink(), "not whole"),
    "torn": (lambda f: (f / REFERENCE_FILE).write_bytes((f / REFERENCE_FILE).read_bytes()[:-9]), "torn"),
    "changed": (
        lambda f: (f / REFERENCE_FILE).write_bytes((f / REFERENCE_FILE).read_bytes()[:-1] + b"\x01"),
        "checksum",
    ),
    "NaN": (lambda f: _forge(f, lambda tensors: tensors[NAME].fill_(float("nan"))), "NaN or infinite"),
    "other tensors": (lambda f: _forge(f, lambda tensors: tensors.update(more=torch.ones(2, 2))), "other tensors"),
    "other shape": (
        lambda f: change_config(f, lambda c: c["reference"][NAME].update(shape=[2, 2])),
        "another shape than its weight",
    ),
    "no float": (lambda f: change_config(f, lambda c: c["reference"][NAME].update(dtype="int8")), "of the type 'int8'"),
    "elsewhere": (
        lambda f: change_config(f, lambda c: c["reference"][NAME].update(file="../x.safetensors")),
        "somewhere else",
    ),
    "a weight less": (lambda f: change_config(f, lambda c: c["reference"].pop(NAME)), "other weights"),
    "scaled": (lambda f: change_config(f, lambda c: c["tensors"][NAME].update(scaling=1.0)), "has a scaling"),
    "two kinds": (
        lambda f: change_config(f, lambda c: c.update(adapter={"settings_sha256": "0", "tensors": {}})),
        "one of an adapter and the weights themselves",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(full_model, tmp_path, kind):
    made_map(full_model).save_pretrained(tmp_path / "map")
    damage, message = DAMAGE[kind]
    damage(tmp_path / "map")
    with pytest.raises(ALoRAError, match=message):
        ImportanceMap.from_pretrained(tmp_path / "map")


def test_a_map_is_published_and_fetched(hub, full_model, tmp_path):
    importance = made_map(full_model).with_info(base_model="tiny-org/tiny-llama", estimator="path")
    make_map().push_to_hub("tiny-org/map")  # an adapter's map was there before
    importance.push_to_hub("tiny-org/map")
    held = hub.store.repos["model", "tiny-org/map"]
    names = set(held.commits[held.refs["main"]])
    assert "reference.safetensors" in names and not {"adapter_config.json", "adapter_model.safetensors"} & names
    card = held.card(held.refs["main"])
    assert "lora" not in card["tags"] and "importance-map" in card["tags"] and "base_model_relation" not in card
    pull("tiny-org/map", tmp_path / "map")
    for again in (ImportanceMap.from_pretrained("tiny-org/map"), ImportanceMap.from_pretrained(tmp_path / "map")):
        assert all(torch.equal(again[name], importance[name]) for name in importance)
    make_map().push_to_hub("tiny-org/map")
    assert "reference.safetensors" not in held.commits[held.refs["main"]]


def test_saving_the_model_saves_the_map_and_how_it_was_held(full_model, token_data, training_arguments, tmp_path):
    settings = {"train_dataset": token_data()}
    recorder = ALoRATrainer(
        full_model, training_arguments(), alora=ALoRAConfig(record="path", full_parameters=True), **settings
    )
    recorder.train()
    recorder.save_model(str(tmp_path / "recorded"))
    again = ImportanceMap.from_pretrained(tmp_path / "recorded")
    assert again.parameterization is Parameterization.FULL and set(again) == set(recorder.importance)
    config = ALoRAConfig(lam="auto", full_parameters=True)
    trainer = ALoRATrainer(full_model, training_arguments(max_steps=4), importance=again, alora=config, **settings)
    trainer.train()
    trainer.save_model(str(tmp_path / "tuned"))
    told = json.loads((tmp_path / "tuned" / TUNING_FILE).read_text())
    assert told["protection"]["lam"] == "auto" and told["training"]["last_lambda"] > 0
    trainer.create_model_card()
    card = (Path(trainer.args.output_dir) / "README.md").read_text()
    assert "LoRA adapter" not in card  # it is a model: the trainer's own card
