"""Which checkpoint a training can go on from: the newest one that is whole.

A checkpoint is many files, and a process can be killed between any two of them or within one. The Trainer writes
``trainer_state.json`` last; beside that, every file is checked for having its end.
"""

from __future__ import annotations

import json
import logging
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from alora_trainer.errors import ALoRAError
from alora_trainer.trainer.checkpoint import PARTS, RECORDER_FILE, recordings_of, whole_sets

logger = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"
# Of a folder with the pieces of a sharded state, written last.
_SHARDS_INDEX = ".metadata"
# Files whose state says whether a checkpoint is whole, and that a resumed training reads.
_JUDGED = (".safetensors", ".pt", ".pth", ".bin", ".json", ".partial")


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a trainer's output folder, whole or not, newest first."""
    return sorted(folder.glob("checkpoint-*"), key=_step_of, reverse=True)


def _step_of(checkpoint: Path) -> int:
    step = checkpoint.name.rpartition("-")[2]
    return int(step) if step.isdigit() else -1


def trainer_state(checkpoint: Path) -> dict[str, Any] | None:
    """The Trainer's own state in a checkpoint; None if it is not there or not whole."""
    try:
        state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return dict(state) if isinstance(state, dict) and {"global_step", "max_steps"} <= set(state) else None


def why_torn(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint that was not written to its end; None if it is whole."""
    if trainer_state(checkpoint) is None:
        return f"{STATE_FILE}, which is written last, is missing or not whole"
    for folder in {path.parent for path in checkpoint.glob("*/*.distcp")}:
        if not (folder / _SHARDS_INDEX).is_file():
            return f"{folder.name}/{_SHARDS_INDEX}, which says what its pieces are, is missing"
    files = {path.name: path for path in sorted(checkpoint.iterdir()) if path.is_file()}
    for stem in dict.fromkeys(match["stem"] for match in map(PARTS.fullmatch, files) if match):
        parts = [name for name in files if name == f"{stem}.safetensors" or _stem_of(name) == stem]
        whole = whole_sets(parts)
        if not whole:
            return f"{_first_missing(parts)} is missing"
        if len(whole) > 1 and stem == Path(RECORDER_FILE).stem:
            return f"it has {recordings_of(whole)}"
        for name in set(parts) - {name for names in whole.values() for name in names}:
            del files[name]  # left by another number of processes, which was stopped here; nothing reads it
    for name, path in files.items():
        problem = _problem(path)
        if problem is not None:
            return f"{name} is damaged ({problem})"
    return None


def clear_checkpoint(checkpoint: Path) -> None:
    """Make way for a checkpoint of the same step: what an earlier training left there is neither read nor judged with it."""
    if not checkpoint.is_dir():
        return
    (checkpoint / STATE_FILE).unlink(missing_ok=True)  # first: from here on it is no whole one
    for path in checkpoint.iterdir():
        if path.is_file() and path.suffix in _JUDGED:
            path.unlink()


def _stem_of(name: str) -> str | None:
    match = PARTS.fullmatch(name)
    return match["stem"] if match else None


def _first_missing(parts: list[str]) -> str:
    """Of sets of parts that are not whole: a part that the largest of them lacks."""
    matches = [match for match in map(PARTS.fullmatch, parts) if match]
    count = max((match["count"] for match in matches), key=lambda count: sum(one["count"] == count for one in matches))
    wanted = (f"{matches[0]['stem']}-{number:05d}-of-{count}.safetensors" for number in range(1, int(count) + 1))
    return next(name for name in wanted if name not in parts)


def _problem(path: Path) -> str | None:
    if path.suffix == ".partial":
        return "it was being written"
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt"):
                return None
        except SafetensorError as error:
            return str(error)
    if path.suffix in (".pt", ".pth", ".bin") and not zipfile.is_zipfile(path):
        return "its end is missing"
    if path.suffix == ".json":
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            return str(error)
    return None


def last_whole_checkpoint(folder: Path, *, max_steps: int | None = None) -> Path | None:
    """The newest checkpoint to go on from, or None; those that are not whole are passed over with a warning.

    One at the very end of a training is passed over, too: going on from there would train one step too many.

    Args:
        folder: a trainer's output folder.
        max_steps: of the training that goes on; None takes what the checkpoint says of its own.
    """
    for path in checkpoints(folder):
        torn = why_torn(path)
        if torn is not None:
            logger.warning(f"{path.name} is passed over: {torn}")
            continue
        state = trainer_state(path)
        if state is not None and state["global_step"] < (max_steps or state["max_steps"]):
            return path
    return None


def checkpoint_to_resume(folder: Path, *, max_steps: int | None) -> str:
    """The checkpoint that ``train(resume_from_checkpoint=True)`` goes on from.

    Raises:
        ALoRAError: there is none.
    """
    found = last_whole_checkpoint(folder, max_steps=max_steps)
    if found is not None:
        return str(found)
    whole = [path for path in checkpoints(folder) if why_torn(path) is None]
    if whole:
        raise ALoRAError(
            f"the training in {folder} was finished already ({whole[0].name}): raise max_steps to train on"
        )
    torn = len(checkpoints(folder))
    raise ALoRAError(
        f"{folder} has no checkpoint to go on from ({torn} that were not written to their end): start again"
        if torn
        else f"{folder} has no checkpoint to go on from: start without resume_from_checkpoint"
    )


def check_whole(checkpoint: str) -> None:
    """Refuse a checkpoint that the user names and that is not whole.

    Raises:
        ALoRAError: saying what is wrong with it, and which one could be used.
    """
    path = Path(checkpoint)
    torn = why_torn(path) if path.is_dir() else None
    if torn is not None:
        other = last_whole_checkpoint(path.parent)
        instead = f"resume from {other.name}" if other is not None else "start again"
        raise ALoRAError(f"the checkpoint {path} is not whole: {torn}; {instead}")


def last_good_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that is whole and has nothing in its weights that is not finite: its name, or None."""
    for path in checkpoints(folder):
        if why_torn(path) is None and all(_is_finite(file) for file in path.glob("*model*.safetensors")):
            return path.name
    return None


def _is_finite(file: Path) -> bool:
    with safe_open(file, framework="pt") as tensors:
        return all(bool(torch.isfinite(tensors.get_tensor(name)).all()) for name in tensors.keys())  # noqa: SIM118
