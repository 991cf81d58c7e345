"""The artefact: what is written is read back, whole or not at all, and fits the model or is refused."""

from __future__ import annotations

import copy
import importlib.util
import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from alora_trainer import ALoRAConfig, ALoRAError, ALoRATrainer, ImportanceMap
from alora_trainer.artefact import files
from alora_trainer.basics.safetensors_writer import tensor_digest
from alora_trainer.weights.theta import AdapterTheta
from tests.tiny_map import change_config, make_map


@pytest.fixture
def recorded(lora_model, token_data, training_arguments):
    trainer = ALoRATrainer(
        lora_model(), training_arguments(), train_dataset=token_data(), alora=ALoRAConfig(record="path")
    )
    trainer.train()
    return trainer


def test_round_trip(recorded, tmp_path):
    importance = recorded.importance
    importance.save_pretrained(tmp_path / "map")
    again = ImportanceMap.from_pretrained(tmp_path / "map")
    assert (
        list(again)
        == list(importance)
        == [f"model.layers.{layer}.self_attn.{projection}" for layer in (0, 1) for projection in ("q_proj", "v_proj")]
    )
    for name, omega in importance.items():
        assert torch.equal(again[name], omega)
        assert torch.equal(
            again.reference[name].b @ again.reference[name].a,
            importance.reference[name].b @ importance.reference[name].a,
        )
    assert again.info.estimator == "path" and again.info.steps == 4 and again.info.tokens == 4 * 2 * 8
    assert again["model.layers.0.self_attn.v_proj"].shape == (8, 16)
    assert sorted(p.name for p in (tmp_path / "map").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "importance.safetensors",
        "importance_config.json",
        "layer_importance.json",
        *(["layer_importance.png"] if importlib.util.find_spec("matplotlib") else []),
    ]


def test_the_folder_is_an_ordinary_adapter(recorded, _tiny_llama, tmp_path):
    from peft import PeftModel

    recorded.importance.save_pretrained(tmp_path / "map")
    loaded = PeftModel.from_pretrained(copy.deepcopy(_tiny_llama), str(tmp_path / "map"), is_trainable=True)
    ids = torch.arange(2, 12)[None]
    recorded.model.eval()
    loaded.eval()
    assert torch.equal(loaded(input_ids=ids).logits, recorded.model(input_ids=ids).logits)
    weights = ImportanceMap.from_pretrained(tmp_path / "map").check_model(loaded)
    assert len(weights) == 4


def test_maps_add_up(recorded, lora_model, token_data, training_arguments):
    second = ALoRATrainer(
        lora_model(), training_arguments(), train_dataset=token_data(seed=9), alora=ALoRAConfig(record="paper")
    )
    second.train()
    total = recorded.importance + second.importance
    for name in total:
        torch.testing.assert_close(total[name], recorded.importance[name] + second.importance[name])
        assert torch.equal(total.reference[name].b, second.importance.reference[name].b)
    assert [task["estimator"] for task in total.info.earlier_tasks] == ["path"]
    assert total.info.estimator == "paper"
    assert total.mean == pytest.approx(recorded.importance.mean + second.importance.mean, rel=1e-6)


def test_after_is_the_sum_with_its_own_theta():
    earlier, later = make_map(values=1), make_map(values=2)
    assert later.after(earlier) == earlier + later != later + earlier
    assert later.after(earlier).theta == later.theta
    part = later.select([0])
    assert set(later.after(part)) == set(later)  # what the earlier one has not stays as it is
    with pytest.raises(ALoRAError, match="is not in the later one"):
        part.after(later)


def test_maps_are_equal_by_value(tmp_path):
    one, same, other = make_map(values=1), make_map(values=1), make_map(values=2)
    assert one == one and one == same and one != other and one != "map"
    one.save_pretrained(tmp_path / "map")
    assert ImportanceMap.from_pretrained(tmp_path / "map") == one
    assert one != one.convert("bfloat16")
    assert one.convert("log8") == same.convert("log8")
    assert one != one.select([0])
    name = next(iter(one))
    moved = AdapterTheta(dict(one.theta) | {name: other.theta[name]}, one.adapter_state, one.adapter_config)
    assert one != one.with_omega({n: one.stored(n) for n in one}, theta=moved)
    with pytest.raises(TypeError, match="unhashable"):
        hash(one)


def test_recording_a_second_task_while_protecting_the_first(recorded, token_data, training_arguments):
    first = recorded.importance
    trainer = ALoRATrainer(
        recorded.model, training_arguments(), train_dataset=token_data(seed=9), importance=first,
        alora=ALoRAConfig(record="path", lam=0.1),
    )  # fmt: skip
    trainer.train()
    assert all(bool((trainer.importance[name] >= first[name]).all()) for name in first)
    assert len(trainer.importance.info.earlier_tasks) == 1


def test_saving_over_a_map_replaces_it_and_leaves_nothing_else(recorded, tmp_path):
    recorded.importance.save_pretrained(tmp_path / "map")
    (recorded.importance + recorded.importance).save_pretrained(tmp_path / "map")
    again = ImportanceMap.from_pretrained(tmp_path / "map")
    assert again.mean == pytest.approx(2 * recorded.importance.mean, rel=1e-6)
    assert [p.name for p in tmp_path.iterdir() if p.name != "out"] == ["map"]


def test_saving_into_a_folder_with_other_files_keeps_them(recorded, tmp_path):
    (tmp_path / "map").mkdir()
    (tmp_path / "map" / "notes.txt").write_text("mine")
    recorded.importance.save_pretrained(tmp_path / "map")
    assert (tmp_path / "map" / "notes.txt").read_text() == "mine"
    assert len(ImportanceMap.from_pretrained(tmp_path / "map")) == 4


def test_a_write_that_dies_leaves_the_old_map(recorded, tmp_path, monkeypatch):
    recorded.importance.save_pretrained(tmp_path / "map")

    def full_disk(path, content):
        raise OSError("No space left on device")

    monkeypatch.setattr("alora_trainer.artefact.writing.write_json", full_disk)
    with pytest.raises(OSError, match="No space"):
        (recorded.importance + recorded.importance).save_pretrained(tmp_path / "map")
    with pytest.raises(OSError, match="No space"):
        recorded.importance.save_pretrained(tmp_path / "new")
    monkeypatch.undo()
    assert ImportanceMap.from_pretrained(tmp_path / "map").mean == pytest.approx(recorded.importance.mean)
    assert not (tmp_path / "new").exists()
    assert [p.name for p in tmp_path.iterdir() if p.name != "out"] == ["map"]


def _damage_value(folder, value):
    """As a forger would: with all checksums right."""
    omega = load_file(folder / files.OMEGA_FILE)
    name = next(iter(omega))
    omega[name][0, 0] = value
    save_file(omega, folder / files.OMEGA_FILE, metadata={"format": "pt"})

    def change(config):
        config["formats"]["float32"]["parts"][name][""]["sha256"] = tensor_digest(omega[name])
        config["files"][files.OMEGA_FILE] = (folder / files.OMEGA_FILE).stat().st_size

    change_config(folder, change)


DAMAGE = {
    "NaN": (lambda f: _damage_value(f, float("nan")), "NaN or infinite"),
    "huge": (lambda f: _damage_value(f, 3e38), "absurdly large"),
    "negative": (lambda f: _damage_value(f, -1.0), "negative"),
    "no config": (lambda f: (f / files.CONFIG_FILE).unlink(), "holds no importance map"),
    "no omega": (lambda f: (f / files.OMEGA_FILE).unlink(), "not whole"),
    "no adapter": (lambda f: (f / files.ADAPTER_FILE).unlink(), "not whole"),
    "torn omega": (lambda f: (f / files.OMEGA_FILE).write_bytes((f / files.OMEGA_FILE).read_bytes()[:-9]), "torn"),
    "flipped byte": (
        lambda f: (f / files.OMEGA_FILE).write_bytes((f / files.OMEGA_FILE).read_bytes()[:-1] + b"\x01"),
        "checksum",
    ),
    "torn config": (lambda f: (f / files.CONFIG_FILE).write_text("{"), "damaged"),
    "config is a list": (lambda f: (f / files.CONFIG_FILE).write_text("[]"), "damaged"),
    "future schema": (lambda f: (f / files.CONFIG_FILE).write_text('{"schema_version": 9}'), "update alora-trainer"),
    "early schema": (lambda f: (f / files.CONFIG_FILE).write_text('{"schema_version": 1}'), "before the first release"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(tmp_path, kind):
    make_map().save_pretrained(tmp_path / "map")
    damage, message = DAMAGE[kind]
    damage(tmp_path / "map")
    with pytest.raises(ALoRAError, match=message):
        ImportanceMap.from_pretrained(tmp_path / "map")


def test_nothing_there(tmp_path):
    with pytest.raises(ALoRAError, match="no importance map at"):
        ImportanceMap.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ALoRAError, match="the Hub gives no such repository"):
        ImportanceMap.from_pretrained("somebody/nothing-here")


def test_a_map_for_another_model_is_refused(recorded, lora_model, token_data, training_arguments):
    importance = recorded.importance

    def protect(model):
        return ALoRATrainer(model, training_arguments(), train_dataset=token_data(), importance=importance)

    assert protect(lora_model(r=5)) is not None  # another rank is no other model
    with pytest.raises(ALoRAError, match="no importance of model.layers.0.self_attn.k_proj"):
        protect(lora_model(target_modules=["q_proj", "k_proj"]))
    other = lora_model()
    other.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight.data.mul_(1.5)
    with pytest.raises(ALoRAError, match="other base weights"):
        protect(other)
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    def llama(**settings):
        defaults = {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": 40,
        }
        return get_peft_model(
            LlamaForCausalLM(LlamaConfig(**(defaults | settings))), LoraConfig(r=3, target_modules=["q_proj", "v_proj"])
        )

    with pytest.raises(ALoRAError, match="for another model.*is .32, 32. here"):
        protect(llama(hidden_size=32))
    with pytest.raises(ALoRAError, match="for another model.*has no model.layers.1"):
        protect(llama(num_hidden_layers=1, num_key_value_heads=2))


def test_models_that_cannot_be_recorded_are_refused(lora_model, _tiny_llama, token_data, training_arguments):
    def record(model):
        return ALoRATrainer(model, training_arguments(), train_dataset=token_data(), alora=ALoRAConfig(record="path"))

    with pytest.raises(ALoRAError, match="no trainable LoRA adapter"):
        record(copy.deepcopy(_tiny_llama))
    with pytest.raises(ALoRAError, match="Dora.*plain LoRA or rsLoRA"):
        record(lora_model(use_dora=True))
    merged = lora_model()
    merged.merge_adapter()
    with pytest.raises(ALoRAError, match="merged.*unmerge_adapter"):
        record(merged)
    frozen = lora_model()
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ALoRAError, match="no trainable LoRA adapter"):
        record(frozen)


def test_the_card_says_what_it_is(recorded, tmp_path):
    recorded.importance.save_pretrained(tmp_path / "map")
    card = (tmp_path / "map" / "README.md").read_text()
    assert "importance-map" in card and "| damping xi | 0.001 |" in card and "Activated LoRA" in card
    layers = json.loads((tmp_path / "map" / "layer_importance.json").read_text())
    norms = recorded.importance.layer_norms
    assert {name: layer["norm"] for name, layer in layers.items()} == pytest.approx(norms)


def test_the_heat_map_arranges_layers_and_kinds(recorded, tmp_path):
    from alora_trainer.artefact.heatmap import arrange, draw_heatmap

    kinds, layers, table = arrange(
        {"a.layers.0.q": 1.0, "a.layers.2.q": math.e, "a.layers.2.v": 0.0, "head": math.e**2}
    )
    assert kinds == ["q", "v", "head"] and layers == [0, 2]
    assert table[0] == [0.0, 1.0] and all(math.isnan(x) for x in table[1]) and table[2][0] == pytest.approx(2.0)
    pytest.importorskip("matplotlib")
    assert draw_heatmap(recorded.importance.layer_norms, tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_a_map_without_its_adapters_configuration_cannot_be_saved(tmp_path):
    importance = make_map()
    bare = importance.with_omega({n: importance.stored(n) for n in importance}, theta=AdapterTheta(importance.theta))
    with pytest.raises(ALoRAError, match="no configuration of its adapter"):
        bare.save_pretrained(tmp_path / "map")
    assert not (tmp_path / "map").exists()
