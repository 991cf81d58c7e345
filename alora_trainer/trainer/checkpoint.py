"""What recording and protecting keep in a Trainer checkpoint, beside what the Trainer itself does."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from alora_trainer.basics.files import read_json, replacing, write_json
from alora_trainer.basics.processes import Processes
from alora_trainer.basics.safetensors_writer import write_tensors
from alora_trainer.errors import ALoRAError
from alora_trainer.importance.recording.recorder import Recorder

RECORDER_FILE = "importance_recorder.safetensors"
STEERING_FILE = "penalty_strength.json"


def save_recorder(recorder: Recorder, folder: str | Path) -> None:
    """Write this process's share of the recorder's state into a checkpoint folder; a file appears whole or not at all.

    One process writes `RECORDER_FILE`; of several, each writes one of ``importance_recorder-00001-of-00002.safetensors``, ...
    """
    tensors, counters = recorder.state_dict()
    processes = Processes()
    path = Path(folder) / RECORDER_FILE
    if processes.count > 1:
        path = path.with_name(f"{path.stem}-{processes.rank + 1:05d}-of-{processes.count:05d}.safetensors")
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        write_tensors(partial, tensors, counters)


def load_recorder(recorder: Recorder, folder: str | Path) -> None:
    """Bring a recorder to the state that `save_recorder` wrote, on however many processes.

    Raises:
        ALoRAError: the checkpoint has no recording, or it is damaged or of other weights.
    """
    stem = Path(RECORDER_FILE).stem
    paths = sorted(
        path for pattern in (RECORDER_FILE, f"{stem}-*-of-*.safetensors") for path in Path(folder).glob(pattern)
    )
    if not paths:
        raise ALoRAError(
            f"{folder} was saved without a recording (by another trainer, or with save_only_model): "
            "resume from a checkpoint of a recording run, or start again"
        )
    with ExitStack() as stack:
        homes: dict[str, Any] = {}
        counters: dict[str, str] = {}
        for path in paths:
            try:
                file = stack.enter_context(safe_open(path, framework="pt"))
            except SafetensorError as error:
                raise ALoRAError(f"{path} is damaged ({error}): resume from an earlier checkpoint") from error
            homes |= dict.fromkeys(file.keys(), file)
            counters = file.metadata()
        recorder.load_state_dict(homes, lambda name: homes[name].get_tensor(name), counters)


def save_steering(state: Mapping[str, Any], folder: str | Path) -> None:
    """Write `Steering.state_dict` into a checkpoint folder; the file appears whole or not at all."""
    write_json(Path(folder) / STEERING_FILE, state)


def load_steering(folder: str | Path) -> dict[str, Any]:
    """What `save_steering` wrote.

    Raises:
        ALoRAError: it is not there, or damaged.
    """
    state = read_json(Path(folder) / STEERING_FILE)
    if not isinstance(state, dict):
        raise ALoRAError(
            f"{folder} has no state of lambda (it was saved without lam='auto' and probe_dataset, or with save_only_model): "
            "resume from a checkpoint that has it, or start again"
        )
    return state
