"""What a step of stage A and of stage B costs over plain LoRA's: whole steps in turns, in one process, on one model."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch
from measuring import ratios, spread, take_turns

from gpu_parts.importance import Made, all_made, timed_kronecker
from gpu_parts.schedule import Budget, Figures
from gpu_parts.settings import TARGETS, Settings
from gpu_parts.training import Training, base_model, clear_up, halving


def step_costs(model: str, targets: str) -> Callable[[Settings, Figures, Budget], None]:
    """A part: one model's true shapes, and which of its layers are adapted."""

    def run(settings: Settings, figures: Figures, budget: Budget) -> None:
        kind, shape = settings.shape(model)
        base = base_model(kind, shape, settings)
        made = all_made(settings.device)
        if targets == "q,v":  # of all linear layers the whole bases would take more than the model
            made["kronecker, all directions"] = lambda s: timed_kronecker(s, max(s), settings.device)
        costs_of(base, TARGETS[kind][targets], made, settings, figures, budget)
        figures |= {"model": model, "shape": shape, "targets": targets}

    return run


def costs_of(
    base: Any, targets: list[str], made: Mapping[str, Made], settings: Settings, figures: Figures, budget: Budget
) -> None:
    """Find the batch that fits, then stage A and every kind of importance in stage B, each beside plain steps of its own.

    Args:
        base: the model.
        targets: the layers that are adapted.
        made: importance by name.
        settings, figures, budget: of the part.
    """
    batch, length = settings.batch
    training = Training(base, targets, batch=1, length=length, device=settings.device)
    heaviest = next(iter(made.values()))

    def fits(samples: int) -> None:
        training.take(samples, length)
        training.recorded(training.recorder())
        training.held(training.penalty(heaviest))

    batch, _ = halving(settings, fits, batch)
    clear_up(settings.device)
    figures |= {"batch": batch, "length": length, "adapted_elements": training.elements, "stage_a": None, "stage_b": {}}
    figures["stage_a"] = _stage_a(training, settings)
    clear_up(settings.device)
    step = figures["stage_a"]["plain_step_seconds"]["median"]
    for name, make in made.items():
        reason = budget.fits(4 * (settings.rounds + 1) * step)
        figures["stage_b"][name] = {"skipped": reason} if reason else _fitting(training, make, settings)
        clear_up(settings.device)


def _stage_a(training: Training, settings: Settings) -> dict[str, Any]:
    recorder = training.recorder()
    works = {"plain": training.plain, "recorded": lambda: training.recorded(recorder)}
    times = take_turns(settings.device, settings.rounds, works)
    recorder.close()
    return {
        "recorded_over_plain": ratios(times["recorded"], times["plain"]),
        "plain_step_seconds": spread(times["plain"]),
        "recorded_step_seconds": spread(times["recorded"]),
    }


def _fitting(training: Training, make: Made, settings: Settings) -> dict[str, Any]:
    try:
        return _stage_b(training, make, settings)
    except torch.cuda.OutOfMemoryError:
        return {"skipped": f"does not fit beside the model at batch {len(training.ids)}"}


def _stage_b(training: Training, make: Made, settings: Settings) -> dict[str, Any]:
    penalty = training.penalty(make)
    works: dict[str, Callable[[], Any]] = {
        "plain": training.plain,
        "held": lambda: training.held(penalty),
        "alone": lambda: training.penalty_alone(penalty),
    }
    times = take_turns(settings.device, settings.rounds, works)
    plain = statistics.median(times["plain"])
    return {
        "backends": sorted({held.backend for held in penalty.held.values()}),
        "held_over_plain": ratios(times["held"], times["plain"]),
        # What the penalty takes by itself is less noisy than a difference of two steps.
        "penalty_alone_over_plain": statistics.median(times["alone"]) / plain,
        "penalty_seconds": spread(times["alone"]),
        "plain_step_seconds": spread(times["plain"]),
    }
