"""Killed by SIGKILL at the worst moments, a training goes on and ends as if nothing had happened, to the bit."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from alora_trainer import ALoRAConfig, ALoRAError, ALoRATrainer
from alora_trainer.trainer.resume import last_good_checkpoint, last_whole_checkpoint, why_torn
from tests.launching import prepared
from tests.resume_worker import STAGES, run

KILLS = [("record", "step"), ("record", "saving"), ("protect", "step"), ("protect", "state"), ("budget", "saving")]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """The folders of trainings that were killed."""
    folders = {kill: tmp_path_factory.mktemp("-".join(kill)) for kill in KILLS}
    # One process imports everything, and those that are to be killed are copies of it.
    context = prepared()
    processes = [context.Process(target=run, args=(stage, folders[stage, moment], moment)) for stage, moment in KILLS]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [-signal.SIGKILL] * len(KILLS)
    return folders


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    folders = {stage: tmp_path_factory.mktemp(f"whole-{stage}") for stage in STAGES}
    for stage, folder in folders.items():
        run(stage, folder, "never")
    return folders


@pytest.mark.parametrize("kill", KILLS, ids="-".join)
def test_a_killed_training_ends_as_the_uninterrupted_one(killed, uninterrupted, kill, caplog):
    stage, moment = kill
    folder = killed[kill]
    newest = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    torn = why_torn(newest)
    assert (torn is not None) == (moment != "step")
    with caplog.at_level("WARNING", logger="alora_trainer"):
        run(stage, folder, "never")
    assert (f"{newest.name} is passed over: {torn}" in caplog.text) == (torn is not None)
    expected = load_file(uninterrupted[stage] / "outcome.safetensors")
    got = load_file(folder / "outcome.safetensors")
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    lines, whole = (json.loads((path / "log.json").read_text()) for path in (folder, uninterrupted[stage]))
    assert lines == whole
    if stage != "record":
        assert len({line["lam"] for line in whole if "lam" in line}) > 1 or stage == "protect"
    # The state that was killed for good: the last checkpoints are alike, file by file.
    for name in ("importance_recorder.safetensors", "penalty_strength.json"):
        pair = [path / "checkpoint-6" / name for path in (folder, uninterrupted[stage])]
        assert [path.is_file() for path in pair] in ([True, True], [False, False])
        if pair[0].is_file():
            assert pair[0].read_bytes() == pair[1].read_bytes()


@pytest.fixture
def saved(lora_model: Any, token_data: Any, training_arguments: Any, tmp_path: Path) -> Any:
    """A recording of four steps with three checkpoints, and a way to go on from them."""

    def trainer() -> ALoRATrainer:
        args = training_arguments(output_dir=str(tmp_path), save_strategy="steps", save_steps=1)
        return ALoRATrainer(lora_model(), args, train_dataset=token_data(), alora=ALoRAConfig(record="path"))

    trainer().train()
    return tmp_path, trainer


@pytest.mark.parametrize(
    "file",
    [
        "adapter_model.safetensors",
        "optimizer.pt",
        "importance_recorder.safetensors",
        "rng_state.pth",
        "trainer_state.json",
    ],
)
def test_every_file_that_lost_its_end_is_recognised(saved, file):
    folder, trainer = saved
    path = folder / "checkpoint-3" / file
    path.write_bytes(path.read_bytes()[:-40])
    assert file in (why_torn(folder / "checkpoint-3") or "")
    found = last_whole_checkpoint(folder, max_steps=4)
    assert found is not None and found.name == "checkpoint-2"
    with pytest.raises(ALoRAError, match=f"checkpoint-3 is not whole: .*{file}.*; resume from checkpoint-2"):
        trainer().train(resume_from_checkpoint=str(folder / "checkpoint-3"))


def test_a_file_that_was_being_written_is_recognised(saved):
    folder, _ = saved
    (folder / "checkpoint-3" / "importance_recorder.partial").write_bytes(b"")
    assert "it was being written" in (why_torn(folder / "checkpoint-3") or "")


def test_where_there_is_nothing_to_go_on_from(saved, tmp_path_factory, training_arguments, lora_model, token_data):
    folder, trainer = saved
    for step in (1, 2, 3):
        (folder / f"checkpoint-{step}" / "trainer_state.json").unlink()
    with pytest.raises(ALoRAError, match=r"was finished already \(checkpoint-4\): raise max_steps"):
        trainer().train(resume_from_checkpoint=True)
    (folder / "checkpoint-4" / "optimizer.pt").write_bytes(b"")
    with pytest.raises(ALoRAError, match=r"no checkpoint to go on from \(4 that were not written to their end\)"):
        trainer().train(resume_from_checkpoint=True)
    empty = training_arguments(output_dir=str(tmp_path_factory.mktemp("empty")))
    with pytest.raises(ALoRAError, match="start without resume_from_checkpoint"):
        ALoRATrainer(lora_model(), empty, train_dataset=token_data()).train(resume_from_checkpoint=True)


def test_a_finished_training_is_extended(saved, training_arguments, lora_model, token_data):
    folder, _ = saved
    args = training_arguments(output_dir=str(folder), max_steps=6)
    trainer = ALoRATrainer(lora_model(), args, train_dataset=token_data(), alora=ALoRAConfig(record="path"))
    trainer.train(resume_from_checkpoint=True)
    assert trainer.importance.info.steps == 6


# ---- numbers that are not finite ----


def test_nan_names_step_layer_and_the_last_checkpoint_with_finite_weights(
    lora_model, token_data, training_arguments, tmp_path
):
    """A weight breaks in step 3 and is saved; the penalty shows it in step 4."""
    from tests.penalty.test_penalty import made_map

    broken = "model.layers.1.self_attn.q_proj"

    class Breaks(ALoRATrainer):
        def _after_optimizer_step(self) -> None:
            super()._after_optimizer_step()
            if self.state.global_step == 2:
                layer = self.model.base_model.model.get_submodule(broken)
                layer.lora_B["default"].weight.data[0, 0] = float("nan")

    model = lora_model(moved=True)
    args = training_arguments(output_dir=str(tmp_path), save_strategy="steps", save_steps=1)
    trainer = Breaks(model, args, train_dataset=token_data(), importance=made_map(model), alora=ALoRAConfig(lam=0.1))
    with pytest.raises(ALoRAError) as caught:
        trainer.train()
    assert f"of {broken} is not finite in step 4; the last good checkpoint is checkpoint-2" in str(caught.value)
    assert "lower the learning rate" in str(caught.value)
    assert last_good_checkpoint(tmp_path) == "checkpoint-2"
    assert trainer.state.global_step == 3


def test_a_loss_that_is_nan_stops_at_once(lora_model, token_data, training_arguments, tmp_path):
    class Breaks(ALoRATrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            return loss * float("inf") if self.state.global_step == 1 else loss

    args = training_arguments(output_dir=str(tmp_path))
    trainer = Breaks(lora_model(), args, train_dataset=token_data(), alora=ALoRAConfig(record="path"))
    with pytest.raises(ALoRAError, match="the loss is not finite in step 2; there is no good checkpoint before it"):
        trainer.train()


def test_a_penalty_that_overflows_is_named(lora_model, token_data, training_arguments):
    from tests.penalty.test_penalty import made_map

    model = lora_model(moved=True, dtype=torch.float32)
    importance = made_map(model)
    for name, parameter in model.named_parameters():
        if "layers.0.self_attn.v_proj.lora_B" in name:
            parameter.data.fill_(1e25)
    config = ALoRAConfig(lam=1.0, normalize=False)
    trainer = ALoRATrainer(model, training_arguments(), train_dataset=token_data(), importance=importance, alora=config)
    with pytest.raises(
        ALoRAError, match="(the penalty|the loss)( of model.layers.0.self_attn.v_proj)? is not finite in step 1"
    ):
        trainer.train()


def test_weights_of_a_checkpoint_are_looked_at(tmp_path):
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (folder / "trainer_state.json").write_text('{"global_step": 1, "max_steps": 2}')
    save_file({"w": torch.tensor([1.0, float("nan")])}, folder / "adapter_model.safetensors")
    assert last_good_checkpoint(tmp_path) is None
    save_file({"w": torch.tensor([1.0, 2.0])}, folder / "adapter_model.safetensors")
    assert last_good_checkpoint(tmp_path) == "checkpoint-1"
