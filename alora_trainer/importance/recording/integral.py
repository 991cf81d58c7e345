"""The running path integral w: where it lives, and how steps are folded into it.

w has the size of the adapted weights themselves and is touched only here. It may stay on the weights' device, live in host
memory, or in memory-mapped files on disk; steps may be gathered and folded in together, so that w is read and written once
for many steps. All of these give the same sums, up to the order of additions within one element (which is kept, too).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.recording.estimators import StepFactors
from alora_trainer.importance.recording.fold import fold_staged, fold_steps
from alora_trainer.weights.trained_weight import TrainedWeight

LOCATIONS = ("device", "cpu", "disk")


class PathIntegral:
    """``w -= sum_t gradient_t * movement_t`` for every weight.

    Args:
        weights: those that are integrated.
        shapes: of w by weight name, where it is not the weight's own.
        location: "device" (beside the weights), "cpu" (host memory; pinned if the weights are on a GPU), or "disk".
        folder: for "disk", where the memory-mapped files go; they are removed by `close`.

    Raises:
        ALoRAError: an unknown location, or "disk" without a folder.
    """

    def __init__(
        self,
        weights: Sequence[TrainedWeight],
        location: str,
        folder: Path | None = None,
        *,
        shapes: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        if location not in LOCATIONS:
            raise ALoRAError(f"omega_device={location!r} is unknown: use one of {', '.join(LOCATIONS)}")
        if location == "disk":
            if folder is None:
                raise ALoRAError("omega_device='disk' needs a folder for its files")
            folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder if location == "disk" else None
        self._shapes = {weight.name: weight.shape for weight in weights} | dict(shapes or {})
        self._w = {weight.name: self._allocate(weight, index, location) for index, weight in enumerate(weights)}
        self._stream = torch.cuda.Stream() if any(weight.device.type == "cuda" for weight in weights) else None

    def _allocate(self, weight: TrainedWeight, index: int, location: str) -> torch.Tensor:
        shape = self._shapes[weight.name]
        if location == "device":
            return torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        if location == "cpu":
            return torch.zeros(shape, dtype=weight.dtype, pin_memory=weight.device.type == "cuda")
        assert self._folder is not None
        path = self._folder / f"w-{index:05d}.bin"
        path.unlink(missing_ok=True)
        rows, columns = shape
        return torch.from_file(str(path), shared=True, size=rows * columns, dtype=weight.dtype).view(rows, columns)

    @property
    def on_disk(self) -> bool:
        return self._folder is not None

    def fold(self, name: str, steps: Sequence[StepFactors]) -> None:
        """Fold steps of one weight in, in their order; on a GPU this runs beside the training, on its own stream."""
        if self._stream is None:
            _fold(self._w[name], steps)
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            _fold(self._w[name], steps)
            for step in steps:
                _keep_until_used(step, self._stream)

    def fold_at_once(self, name: str, step: StepFactors, device: torch.device) -> None:
        """Fold one step in before anything else happens: its matrices on `device` may change right after."""
        self.synchronize()
        fold_staged(self._w[name], [step], device)

    def synchronize(self) -> None:
        """Wait until all that was folded in has arrived."""
        if self._stream is not None:
            self._stream.synchronize()

    def tensors(self) -> dict[str, torch.Tensor]:
        """w by weight name, complete; shares memory with the integral."""
        self.synchronize()
        return self._w

    def close(self) -> None:
        """Give up w and remove its files."""
        self._w = {}
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _fold(w: torch.Tensor, steps: Sequence[StepFactors]) -> None:
    if not steps:
        return
    movement = steps[0].movement
    device = movement.device if isinstance(movement, torch.Tensor) else movement.left.device
    if device == w.device:
        fold_steps(w, steps)
    else:
        fold_staged(w, steps, device)


def _keep_until_used(step: StepFactors, stream: torch.cuda.Stream) -> None:
    """Tell the allocator that `stream` still reads the step's factors."""
    for matrix in (step.gradient, step.movement):
        for tensor in (matrix,) if isinstance(matrix, torch.Tensor) else (matrix.left, matrix.right):
            tensor.record_stream(stream)
