"""What trainers publish beside their models: the map, how it was protected, a card; from checkpoints, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from alora_trainer import ALoRAConfig, ALoRAError, ALoRATrainer, ImportanceMap
from alora_trainer.artefact.cards.tuning import TUNING_FILE
from alora_trainer.artefact.files import CARD_FILE, CONFIG_FILE, OMEGA_FILE
from alora_trainer.trainer.checkpoint import RECORDER_FILE
from tests.conftest import ANN
from tests.older_libraries import before
from tests.tiny_map import make_map

REPO = "tiny-org/trained"


def files_at(hub: Any, commit: str) -> dict[str, bytes]:
    return {name: blob.content for name, blob in hub.store.repos["model", REPO].commits[commit].items()}


def commits(hub: Any) -> list[tuple[str, str]]:
    """(message, hash) of the commits after the one that made the repository."""
    repo = hub.store.repos["model", REPO]
    return [(message, sha) for sha, message in list(repo.messages.items())[1:]]


@pytest.fixture
def recording(lora_model: Any, token_data: Any, training_arguments: Any) -> Any:
    def build(**settings: Any) -> ALoRATrainer:
        args = training_arguments(push_to_hub=True, hub_model_id=REPO, hub_token=ANN, **settings)
        return ALoRATrainer(lora_model(), args, train_dataset=token_data(), alora=ALoRAConfig(record="path"))

    return build


def written_to(folder: Path, content: dict[str, bytes]) -> Path:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_push_to_hub_publishes_the_recorded_map(hub: Any, recording: Any) -> None:
    trainer = recording()
    trainer.train()
    trainer.push_to_hub(license="mit", tags=["mine"], language="en")
    again = ImportanceMap.from_pretrained(REPO)
    assert all(torch.equal(again[name], trainer.importance[name]) for name in trainer.importance)
    card = hub.store.repos["model", REPO].card(hub.store.repos["model", REPO].refs["main"])
    assert {"importance-map", "mine"} <= set(card["tags"]) and card["license"] == "mit" and card["language"] == "en"
    for name, content in files_at(hub, hub.store.repos["model", REPO].refs["main"]).items():
        assert ANN.encode() not in content, f"the token is in {name}"
    arguments = torch.load(Path(trainer.args.output_dir) / "training_args.bin", weights_only=False)
    assert arguments.hub_token == "<HUB_TOKEN>"
    assert type(trainer.args.hub_token) is str and trainer.args.hub_token == ANN  # the caller's own are as they were


def test_every_save_publishes_the_map_of_the_steps_so_far(hub: Any, recording: Any, tmp_path: Path) -> None:
    trainer = recording(
        hub_strategy="every_save", save_strategy="steps", save_steps=2, hub_always_push=True, max_steps=6
    )
    trainer.train()
    trainer.push_to_hub()
    pushed = {message: sha for message, sha in commits(hub)}
    early = ImportanceMap.from_pretrained(REPO, revision=pushed["Training in progress, step 2"])
    late = ImportanceMap.from_pretrained(REPO, revision=pushed["Training in progress, step 4"])
    assert (early.info.steps, late.info.steps, trainer.importance.info.steps) == (2, 4, 6)
    # The recording was not disturbed, and what was published at step 4 is what a recording of four steps gives.
    short = recording(max_steps=4)
    short.train()
    for name in short.importance:
        torch.testing.assert_close(late[name], short.importance[name])
    whole = recording(max_steps=6)
    whole.train()
    for name in whole.importance:
        assert torch.equal(whole.importance[name], trainer.importance[name])
    assert same_adapter(late, files_at(hub, pushed["Training in progress, step 4"]), tmp_path)
    assert b"importance-map" in files_at(hub, pushed["Training in progress, step 2"])[CARD_FILE]
    for _, sha in commits(hub):
        assert not [name for name, content in files_at(hub, sha).items() if ANN.encode() in content]


def test_a_map_in_the_making_is_read_whatever_pattern_says_which_weights(
    hub: Any, lora_model: Any, token_data: Any, training_arguments: Any
) -> None:
    """The map names the weights where PEFT's own configuration, which Trainer copies, has a pattern of any kind."""
    args = training_arguments(
        push_to_hub=True, hub_model_id=REPO, hub_token=ANN, hub_strategy="every_save", save_strategy="steps", save_steps=2,
        hub_always_push=True,
    )  # fmt: skip
    model = lora_model(target_modules=r".*layers\.[01]\.self_attn\.(?:q|v)_proj")
    trainer = ALoRATrainer(model, args, train_dataset=token_data(), alora=ALoRAConfig(record="path"))
    trainer.train()
    trainer._finish_current_push()
    early = dict(commits(hub))["Training in progress, step 2"]
    assert len(ImportanceMap.from_pretrained(REPO, revision=early)) == 4


def same_adapter(importance: ImportanceMap, content: dict[str, bytes], folder: Path) -> bool:
    from safetensors.torch import load

    stored = load(content["adapter_model.safetensors"])
    return all(torch.equal(tensor, stored[key]) for key, tensor in importance.adapter_state.items())


def test_checkpoints_on_the_hub_hold_what_resuming_needs(
    hub: Any, recording: Any, tmp_path: Path, training_arguments: Any, lora_model: Any, token_data: Any
) -> None:
    trainer = recording(
        hub_strategy="checkpoint", save_strategy="steps", save_steps=2, hub_always_push=True, max_steps=4
    )
    trainer.train()
    trainer._finish_current_push()
    first = next(sha for message, sha in commits(hub) if message == "Training in progress, step 2, checkpoint")
    content = files_at(hub, first)
    assert f"last-checkpoint/{RECORDER_FILE}" in content and CONFIG_FILE in content
    assert f"last-checkpoint/{CONFIG_FILE}" not in content  # the state makes the map; it is not kept twice
    folder = written_to(tmp_path / "fetched", content)
    args = training_arguments(output_dir=str(tmp_path / "resumed"), max_steps=4)
    resumed = ALoRATrainer(lora_model(), args, train_dataset=token_data(), alora=ALoRAConfig(record="path"))
    resumed.train(resume_from_checkpoint=str(folder / "last-checkpoint"))
    for name in trainer.importance:
        torch.testing.assert_close(resumed.importance[name], trainer.importance[name])


def test_the_end_strategy_publishes_at_the_end_alone(hub: Any, recording: Any) -> None:
    trainer = recording(hub_strategy="end", save_strategy="steps", save_steps=2)
    trainer.train()
    assert not commits(hub)
    trainer.push_to_hub()
    assert len(ImportanceMap.from_pretrained(REPO)) == 4


def test_a_protected_adapter_says_what_held_it(
    hub: Any, lora_model: Any, token_data: Any, training_arguments: Any
) -> None:
    make_map(base_revision=None).push_to_hub("tiny-org/map")
    commit = hub.store.repos["model", "tiny-org/map"].refs["main"]
    args = training_arguments(
        push_to_hub=True, hub_model_id=REPO, hub_token=ANN, hub_strategy="every_save", save_strategy="steps", save_steps=2,
        hub_always_push=True,
    )  # fmt: skip
    trainer = ALoRATrainer(
        lora_model(moved=True), args, train_dataset=token_data(), importance="tiny-org/map", alora=ALoRAConfig(lam=0.25)
    )
    trainer.train()
    trainer.push_to_hub()
    (early,) = (sha for message, sha in commits(hub) if message == "Training in progress, step 2")
    for sha in (early, hub.store.repos["model", REPO].refs["main"]):
        content = files_at(hub, sha)
        told = json.loads(content[TUNING_FILE])
        assert (told["map"]["repo_id"], told["map"]["commit"]) == ("tiny-org/map", commit)
        assert told["protection"]["lam"] == 0.25 and "record" not in told["protection"]
        assert f"[tiny-org/map](https://huggingface.co/tiny-org/map/tree/{commit})" in content[CARD_FILE].decode()
        assert "| lambda | 0.25 |" in content[CARD_FILE].decode()
        assert CONFIG_FILE not in content and OMEGA_FILE not in content
    assert told["training"]["steps"] == 4


def test_a_plain_training_is_published_as_ever(
    hub: Any, lora_model: Any, token_data: Any, training_arguments: Any
) -> None:
    args = training_arguments(push_to_hub=True, hub_model_id=REPO, hub_strategy="every_save", save_strategy="epoch")
    trainer = ALoRATrainer(lora_model(), args, train_dataset=token_data())
    trainer.train()
    trainer.push_to_hub(tags="mine")
    content = files_at(hub, hub.store.repos["model", REPO].refs["main"])
    assert TUNING_FILE not in content and CONFIG_FILE not in content
    assert (
        b"This model was trained" in content[CARD_FILE] or b"This model is a fine-tuned version" in content[CARD_FILE]
    )
    assert b"importance-map" not in content[CARD_FILE]


def test_saving_the_model_saves_the_map(
    lora_model: Any, token_data: Any, training_arguments: Any, tmp_path: Path
) -> None:
    args = training_arguments(save_strategy="steps", save_steps=2)
    trainer = ALoRATrainer(lora_model(), args, train_dataset=token_data(), alora=ALoRAConfig(record="path"))
    trainer.train()
    assert not (Path(args.output_dir) / "checkpoint-2" / CONFIG_FILE).exists()
    trainer.save_model(str(tmp_path / "saved"))
    assert len(ImportanceMap.from_pretrained(tmp_path / "saved")) == 4


def test_another_revision_of_the_base_is_refused_unless_allowed(
    lora_model: Any, token_data: Any, training_arguments: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def protect(importance: ImportanceMap, **settings: Any) -> ALoRATrainer:
        model = lora_model()
        model.base_model.model.config._commit_hash = "f" * 40
        alora = ALoRAConfig(lam=0.1, **settings)
        return ALoRATrainer(model, training_arguments(), train_dataset=token_data(), importance=importance, alora=alora)

    with pytest.raises(ALoRAError, match="another revision of the base model, 0123456789.* set allow_other_revision"):
        protect(make_map())
    protect(make_map(), allow_other_revision=True)
    assert "going on, as allow_other_revision says" in caplog.text
    for known in ("f" * 40, "main", None):  # the same, a branch (which tells nothing), not known
        protect(make_map(base_revision=known))


def test_the_commit_of_a_base_model_is_found_or_left_open(hub: Any, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from alora_trainer.importance.base_model import base_revision, remember_revision
    from tests.tiny_recipe import write_all

    folder = write_all(tmp_path).parent / "model"
    repo = hub.store.add("model", "tiny-org/base", {path.name: path.read_bytes() for path in folder.iterdir()})
    first = repo.refs["main"]
    wrapped = get_peft_model(
        AutoModelForCausalLM.from_pretrained("tiny-org/base"), LoraConfig(target_modules=["q_proj"])
    )
    assert base_revision(wrapped) == first
    assert base_revision(AutoModelForCausalLM.from_pretrained(folder)) is None
    second = repo.commit(dict(repo.commits[first]), "again")
    model = AutoModelForCausalLM.from_pretrained("tiny-org/base")
    # Two commits are in the cache, and the model does not say which it is of; with an older transformers it does.
    assert base_revision(model) == (second if before("transformers", "5.20") else None)
    remember_revision(model, None)
    assert base_revision(model) == second
    remember_revision(model, first)
    assert base_revision(model) == first
