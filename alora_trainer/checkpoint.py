"""The recorder's state in a Trainer checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError, safe_open

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.recorder import Recorder
from alora_trainer.importance.safetensors_stream import write_tensors

RECORDER_FILE = "importance_recorder.safetensors"


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
