"""What recording and protecting keep in a Trainer checkpoint, beside what the Trainer itself does."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
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
LOSS_PARTS_FILE = "loss_parts.json"
PARTS = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")


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
    whole = whole_sets(path.name for path in Path(folder).glob(f"{Path(RECORDER_FILE).stem}*.safetensors"))
    if len(whole) > 1:
        raise ALoRAError(f"{folder} has {recordings_of(whole)}: resume from another checkpoint")
    paths = [Path(folder) / name for names in whole.values() for name in names]
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


def whole_sets(names: Iterable[str]) -> dict[int, list[str]]:
    """Those sets of parts of one file that are whole, by their number of parts: of each number of processes that wrote it.

    Args:
        names: ``STEM.safetensors`` or ``STEM-00001-of-00002.safetensors``, of one STEM.
    """
    found: dict[int, dict[int, str]] = {}
    for name in sorted(names):
        match = PARTS.fullmatch(name)
        number, count = (int(match["number"]), int(match["count"])) if match else (1, 1)
        found.setdefault(count, {})[number] = name
    return {count: list(parts.values()) for count, parts in found.items() if set(parts) >= set(range(1, count + 1))}


def recordings_of(counts: Iterable[int]) -> str:
    """What is wrong with a checkpoint that has whole recordings of several numbers of processes."""
    return f"recordings by {' and by '.join(map(str, sorted(counts)))} processes, of which one is left from another training"


def save_loss_parts(state: Mapping[str, Any], folder: str | Path) -> None:
    """Write `LossParts.state` into a checkpoint folder; the file appears whole or not at all."""
    write_json(Path(folder) / LOSS_PARTS_FILE, state)


def load_loss_parts(folder: str | Path) -> dict[str, Any] | None:
    """What `save_loss_parts` wrote; None if the checkpoint has none of it (it is of an earlier version)."""
    state = read_json(Path(folder) / LOSS_PARTS_FILE)
    return state if isinstance(state, dict) and {"data_loss", "penalty", "steps"} <= set(state) else None


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
