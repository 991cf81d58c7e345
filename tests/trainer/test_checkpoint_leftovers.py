"""What a stopped training of another number of processes left in a checkpoint's folder is neither read nor judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from alora_trainer import ALoRAConfig, ALoRATrainer
from alora_trainer.errors import ALoRAError
from alora_trainer.trainer.checkpoint import RECORDER_FILE, load_recorder, whole_sets
from alora_trainer.trainer.resume import clear_checkpoint, why_torn
from tests.tiny_training import quiet_arguments, token_rows

STEM = Path(RECORDER_FILE).stem


def part(number: int, count: int) -> str:
    return f"{STEM}-{number:05d}-of-{count:05d}.safetensors"


def trainer(model: Any, folder: Path, steps: int = 3) -> ALoRATrainer:
    args = quiet_arguments(str(folder), max_steps=steps, save_strategy="steps", save_steps=1)
    return ALoRATrainer(model, args, train_dataset=token_rows(items=32), alora=ALoRAConfig(record="path"))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A recording of three steps with its checkpoints, and the map that came of it."""
    from tests.tiny_training import tiny_llama, with_lora

    folder = tmp_path_factory.mktemp("recorded")
    one = trainer(with_lora(tiny_llama()), folder)
    one.train()
    return folder, one.recorded_importance


def leave(folder: Path, stale: Path, names: list[str]) -> None:
    """A stopped attempt's shards, which say that every sum is a million."""
    tensors = {name: torch.full_like(tensor, 1e6) for name, tensor in load_file(stale).items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        save_file(tensors, folder / name)


@pytest.mark.parametrize("left", [[part(1, 2), part(2, 2)], [part(2, 3)]], ids=["whole", "in part"])
def test_leftovers_in_the_way_of_a_checkpoint(recorded: Any, tmp_path: Path, lora_model: Any, left: list[str]) -> None:
    """They are gone when the checkpoint of the same step is written anew, whatever state they are in."""
    done, importance = recorded
    folder = tmp_path / "checkpoint-2"
    leave(folder, done / "checkpoint-2" / RECORDER_FILE, left)
    (folder / f".{RECORDER_FILE}-x.partial").write_bytes(b"half")
    (folder / "rng_state_1.pth").write_bytes(b"PK half")
    (folder / "trainer_state.json").write_text('{"global_step": 2, "max_steps": 3}')
    (folder / "notes.txt").write_text("of the user")
    trainer(lora_model(), tmp_path).train()
    assert why_torn(folder) is None
    assert not any((folder / name).exists() for name in [*left, "rng_state_1.pth"])
    assert (folder / "notes.txt").read_text() == "of the user"
    again = trainer(lora_model(), tmp_path)
    again.train(resume_from_checkpoint=str(folder))
    assert again.recorded_importance is not None
    assert all(torch.equal(again.recorded_importance[name], omega) for name, omega in importance.items())


def test_leftovers_in_a_checkpoint_of_an_earlier_version(recorded: Any, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "checkpoint-2"
    shutil.copytree(recorded[0] / "checkpoint-2", folder)
    leave(folder, folder / RECORDER_FILE, [part(3, 3)])
    (folder / part(1, 3)).write_bytes(b"half")
    assert why_torn(folder) is None
    leave(folder, folder / RECORDER_FILE, [part(1, 2), part(2, 2)])
    assert "recordings by 1 and by 2 processes" in (why_torn(folder) or "")
    with pytest.raises(ALoRAError, match="recordings by 1 and by 2 processes"):
        load_recorder(None, folder)  # type: ignore[arg-type]
    (folder / RECORDER_FILE).unlink()
    assert why_torn(folder) is None
    (folder / part(2, 2)).unlink()
    assert (why_torn(folder) or "").endswith("is missing")


def test_sets_of_parts() -> None:
    assert whole_sets([RECORDER_FILE]) == {1: [RECORDER_FILE]}
    assert whole_sets([part(1, 2), part(2, 3), part(2, 2)]) == {2: [part(1, 2), part(2, 2)]}
    assert whole_sets([part(1, 2), part(3, 2)]) == {}


def test_a_checkpoint_that_is_made_way_for_is_torn_from_the_first_moment(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-1"
    clear_checkpoint(folder)  # there is none
    (folder / "ref").mkdir(parents=True)
    for name in ("trainer_state.json", "optimizer.pt", "ref/adapter_config.json"):
        (folder / name).write_text("{}")
    clear_checkpoint(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["ref"]
