"""What recording and protecting keep in a Trainer checkpoint, beside what the Trainer itself does."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.recorder import Recorder
from alora_trainer.importance.safetensors_stream import write_tensors
from alora_trainer.parts import read_json, write_json

RECORDER_FILE = "importance_recorder.safetensors"
PROTECTION_FILE = "penalty_strength.json"


def save_recorder(recorder: Recorder, folder: str | Path) -> None:
    """Write the recorder's state into a checkpoint folder; the file appears whole or not at all."""
    tensors, counters = recorder.state_dict()
    path = Path(folder) / RECORDER_FILE
    partial = path.with_suffix(".partial")
    write_tensors(partial, tensors, counters)
    os.replace(partial, path)


def load_recorder(recorder: Recorder, folder: str | Path) -> None:
    """Bring a recorder to the state that `save_recorder` wrote.

    Raises:
        ALoRAError: the checkpoint has no recording, or it is damaged or of other weights.
    """
    path = Path(folder) / RECORDER_FILE
    if not path.is_file():
        raise ALoRAError(
            f"{folder} was saved without a recording (by another trainer, or with save_only_model): "
            "resume from a checkpoint of a recording run, or start again"
        )
    try:
        with safe_open(path, framework="pt") as file:
            recorder.load_state_dict(set(file.keys()), file.get_tensor, file.metadata())
    except SafetensorError as error:
        raise ALoRAError(f"{path} is damaged ({error}): resume from an earlier checkpoint") from error


def save_protection(state: Mapping[str, Any], folder: str | Path) -> None:
    """Write `Protection.state_dict` into a checkpoint folder; the file appears whole or not at all."""
    write_json(Path(folder) / PROTECTION_FILE, state)


def load_protection(folder: str | Path) -> dict[str, Any]:
    """What `save_protection` wrote.

    Raises:
        ALoRAError: it is not there, or damaged.
    """
    state = read_json(Path(folder) / PROTECTION_FILE)
    if not isinstance(state, dict):
        raise ALoRAError(
            f"{folder} has no state of lambda (it was saved without lam='auto' and probe_dataset, or with save_only_model): "
            "resume from a checkpoint that has it, or start again"
        )
    return state
