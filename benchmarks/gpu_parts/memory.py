"""Peak memory over plain LoRA: what recording and holding keep all the time, and what a step needs beside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from measuring import peak_bytes

from gpu_parts.importance import all_made
from gpu_parts.schedule import Budget, Figures
from gpu_parts.settings import LLAMA, TARGETS, Settings
from gpu_parts.training import Training, base_model, clear_up

BATCH, LENGTH = 4, 512


def memory_over_plain(settings: Settings, figures: Figures, budget: Budget) -> None:
    """A part: Llama-3.2-3B's shapes, q and v and then all linear layers, batch 4 x 512."""
    kind, shape = settings.shape(LLAMA)
    batch, length = settings.batch if settings.quick else (BATCH, LENGTH)
    figures |= {"model": LLAMA, "shape": shape, "batch": batch, "length": length}
    for targets in TARGETS[kind]:
        base = base_model(kind, shape, settings)
        training = Training(base, TARGETS[kind][targets], batch=batch, length=length, device=settings.device)
        figures[targets] = rows = {"adapted_elements": training.elements}
        training.plain()
        plain = peak_bytes(settings.device, training.plain)
        rows["plain: peak of a step"] = plain
        for name, work in _works(training, settings).items():
            reason = budget.fits(3 if settings.cuda else 0)
            rows[name] = {"skipped": reason} if reason else _over(plain, work, settings)
            clear_up(settings.device)
        del base, training
        clear_up(settings.device)


def _works(training: Training, settings: Settings) -> dict[str, Callable[[], tuple[int, Callable[[], Any]]]]:
    """By name: makes what is kept; its bytes on the device, and a step with it."""
    works: dict[str, Callable[[], tuple[int, Callable[[], Any]]]] = {
        "recorded": lambda: _recorded(training, {}),
        "recorded, in host memory": lambda: _recorded(training, {"location": "cpu"}),
    }
    for name, make in all_made(settings.device).items():
        works[f"held, {name}"] = lambda make=make: _held(training, make, False)
    host = all_made("cpu")
    works["held, log8, streamed"] = lambda: _held(training, host["log8"], True)
    return works


def _recorded(training: Training, how: dict[str, Any]) -> tuple[int, Callable[[], Any]]:
    recorder = training.recorder(**how)
    return (4 * training.elements if not how else 0), lambda: training.recorded(recorder)


def _held(training: Training, make: Any, streamed: bool) -> tuple[int, Callable[[], Any]]:
    penalty = training.penalty(make, streamed=streamed)
    bytes_of = {shape: make(shape).nbytes for shape in set(training.shapes)}
    kept = 0 if streamed else sum(bytes_of[shape] for shape in training.shapes)
    return kept, lambda: training.held(penalty)


def _over(plain: int, work: Callable[[], tuple[int, Callable[[], Any]]], settings: Settings) -> dict[str, int]:
    kept, step = work()
    step()
    peak = peak_bytes(settings.device, step)
    return {"kept_bytes": kept, "step_over_plain_bytes": peak - plain, "over_plain_bytes": kept + peak - plain}
