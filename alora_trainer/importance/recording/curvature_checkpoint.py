"""An estimate of curvature that was stopped: the file that it goes on from, to the bit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from alora_trainer.basics.files import replacing
from alora_trainer.basics.processes import place
from alora_trainer.basics.safetensors_writer import tensor_bytes, write_tensors
from alora_trainer.errors import ALoRAError

_RECORD = "curvature"


@dataclass
class Progress:
    """How far a pass has come on this process.

    Attributes:
        batches, tokens: that went into it.
        text: a digest of the batches, in their order.
        seconds: that the estimate has taken, earlier passes and starts counted.
    """

    batches: int = 0
    tokens: int = 0
    text: str = ""
    seconds: float = 0.0

    def follow(self, batch: Mapping[str, torch.Tensor]) -> None:
        """Take a batch into `text`."""
        digest = hashlib.sha256(self.text.encode())
        for name in sorted(batch):
            digest.update(f"{name} {tuple(batch[name].shape)}".encode())
            digest.update(tensor_bytes(batch[name]))
        self.text = digest.hexdigest()


@dataclass(frozen=True)
class Saved:
    """What a checkpoint has.

    Attributes:
        number: of the pass that it is of.
        progress: of that pass.
        tensors, facts: what the pass had found so far, and what it needs of the one before.
    """

    number: int
    progress: Progress
    tensors: dict[str, torch.Tensor]
    facts: dict[str, Any]


def own_checkpoint(path: Path) -> Path:
    """The file of this process: `path` itself where there is but one, and one with its number of several."""
    rank, count = place()
    return path if count == 1 else path.with_name(f"{path.stem}-{rank + 1}-of-{count}{path.suffix}")


@dataclass(frozen=True)
class CurvatureCheckpoint:
    """The file of one estimate and one process.

    Args:
        path: None writes and reads nothing.
        every: batches between two writings.
        settings: what the estimate is of, in plain values: one of others does not go on from it.
    """

    path: Path | None
    every: int
    settings: Mapping[str, Any]

    def due(self, progress: Progress) -> bool:
        """Whether to write after the batch that was last."""
        return self.path is not None and progress.batches % self.every == 0

    def write(self, saved: Saved) -> None:
        """Write it whole, in place of what is there."""
        assert self.path is not None
        of = {"number": saved.number, "progress": asdict(saved.progress), "facts": saved.facts}
        record = json.dumps({"settings": self.settings} | of)
        with replacing(self.path) as partial:
            write_tensors(partial, saved.tensors, {_RECORD: record})

    def read(self) -> Saved | None:
        """What is there; None if nothing is.

        Raises:
            ALoRAError: the file is damaged, or of another estimate.
        """
        if self.path is None or not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                record = json.loads((file.metadata() or {}).get(_RECORD, "{}"))
                if record.get("settings") != json.loads(json.dumps(self.settings)):
                    raise self.foreign("another estimate")
                tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ALoRAError(f"{self.path} is damaged ({error}): remove it, and begin anew") from error
        return Saved(record["number"], Progress(**record["progress"]), tensors, record["facts"])

    def foreign(self, what: str) -> ALoRAError:
        """The error about a checkpoint that belongs to something else."""
        return ALoRAError(f"{self.path} belongs to {what}: remove it, and begin anew")
