"""The board's small model in many runs side by side on one card: steps a second of all together, by how many there are.

Every run is a thread with a stream of its own, so that one launches while another computes.
"""

from __future__ import annotations

import threading
import time
from contextlib import nullcontext

import torch
from measuring import synchronize

from gpu_parts.importance import all_made
from gpu_parts.schedule import Budget, Figures
from gpu_parts.settings import SMALL, TARGETS, Settings
from gpu_parts.training import Training, base_model, clear_up

LENGTH, BATCH = 128, 8


def many_runs(settings: Settings, figures: Figures, budget: Budget) -> None:
    """A part: 1, 2, 4 and 8 held runs (1 and 2, quick)."""
    kind, shape = settings.shape(SMALL)
    batch, length = settings.batch if settings.quick else (BATCH, LENGTH)
    figures |= {"model": SMALL, "shape": shape, "batch": batch, "length": length, "runs": {}}
    steps = 3 if settings.quick else 40
    for count in (1, 2) if settings.quick else (1, 2, 4, 8):
        reason = budget.fits(5 if settings.cuda else 0)
        if reason:
            figures["runs"][str(count)] = {"skipped": reason}
            continue
        trainings = [
            Training(base_model(kind, shape, settings), TARGETS[kind]["all linear"], batch=batch, length=length,
                     device=settings.device)
            for _ in range(count)
        ]  # fmt: skip
        figures["runs"][str(count)] = {"held_steps_a_second_together": steps_a_second(trainings, steps, settings)}
        del trainings
        clear_up(settings.device)


def steps_a_second(trainings: list[Training], steps: int, settings: Settings) -> float:
    """Of all together, after one step each.

    Raises:
        RuntimeError: a run broke.
    """
    penalties = [training.penalty(all_made(settings.device)["float32"]) for training in trainings]
    broken: list[BaseException] = []

    def run(training: Training, penalty: object, count: int) -> None:
        try:
            stream = torch.cuda.Stream() if settings.cuda else None
            with torch.cuda.stream(stream) if stream is not None else nullcontext():
                for _ in range(count):
                    training.held(penalty)  # type: ignore[arg-type]
                if stream is not None:
                    stream.synchronize()
        except Exception as error:  # of a thread, which would say it to nobody
            broken.append(error)

    def together(count: int) -> float:
        threads = [
            threading.Thread(target=run, args=(training, penalty, count), daemon=True)
            for training, penalty in zip(trainings, penalties, strict=True)
        ]
        synchronize(settings.device)
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if broken:
            raise RuntimeError(f"{len(broken)} of {len(trainings)} runs broke: {broken[0]}") from broken[0]
        return time.perf_counter() - start

    together(1)
    return len(trainings) * steps / together(steps)
