"""Curvature of a model in parts: each share of the weights has passes of its own, so that only its sums are held at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alora_trainer.basics.processes import Processes
from alora_trainer.importance.kinds.in_basis import InBasis
from alora_trainer.importance.recording.curvature_checkpoint import CurvatureCheckpoint, Progress, Saved
from alora_trainer.weights.adapted import AdaptedWeight

# In the place of a pass's number: all passes were made.
_FINISHED = 0


@dataclass(frozen=True)
class CurvatureEstimate:
    """What `estimate_curvature` found.

    Attributes:
        importance: by weight name, in host memory.
        tokens, batches: how many went into it.
        seconds: how long that took, over all the times that it was begun.
    """

    importance: dict[str, InBasis]
    tokens: int
    batches: int
    seconds: float

    def joined(self, other: CurvatureEstimate) -> CurvatureEstimate:
        """The same with the weights of `other`, which went through the same text."""
        return CurvatureEstimate(
            self.importance | other.importance, self.tokens, self.batches, self.seconds + other.seconds
        )


def split(weights: Sequence[AdaptedWeight], parts: int) -> list[list[AdaptedWeight]]:
    """The weights in at most `parts` runs of neighbours, whose sums (m m and n n numbers each) take about as much memory."""
    sizes = [weight.shape[0] ** 2 + weight.shape[1] ** 2 for weight in weights]
    total, before = sum(sizes), 0
    made: list[list[AdaptedWeight]] = [[] for _ in range(parts)]
    for weight, size in zip(weights, sizes, strict=True):
        made[min(parts - 1, (2 * before + size) * parts // (2 * total))].append(weight)
        before += size
    return [part for part in made if part]


def of_part(path: Path | None, number: int, parts: int) -> Path | None:
    """The checkpoint of a part; `path` itself where there is but one."""
    return path if path is None or parts == 1 else path.with_name(f"{path.stem}-part-{number}{path.suffix}")


@dataclass(frozen=True)
class FinishedPart:
    """The file that a part's importance is kept in until all parts are there.

    Args:
        file: where, and of what.
        made: what the importance is an instance of.
        device: of the model, for processes to agree on.
    """

    file: CurvatureCheckpoint
    made: type[InBasis]
    device: torch.device

    def read(self, shapes: Mapping[str, tuple[int, int]]) -> CurvatureEstimate | None:
        """What was found, if it is there on all processes.

        Args:
            shapes: by weight name.
        """
        saved, processes = self.file.read(), Processes()
        there = processes.total(float(saved is not None), self.device)
        if saved is None or there < processes.count:
            return None
        found: dict[str, dict[str, Any]] = {name: {} for name in shapes}
        for key, tensor in saved.tensors.items():
            name, _, part = key.rpartition(":")
            found[name][part] = tensor
        importance = {name: self.made(shapes[name], parts) for name, parts in found.items()}
        progress = saved.progress
        return CurvatureEstimate(importance, progress.tokens, progress.batches, progress.seconds)

    def write(self, found: CurvatureEstimate) -> None:
        """Keep it, where checkpoints are written."""
        if self.file.path is None:
            return
        tensors = {
            f"{name}:{part}": tensor for name, one in found.importance.items() for part, tensor in one.parts.items()
        }
        progress = Progress(found.batches, found.tokens, seconds=found.seconds)
        self.file.write(Saved(_FINISHED, progress, tensors, {}))
