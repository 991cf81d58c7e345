"""How near the kernels come to the memory's own speed: bytes of Omega that they read in a second over those of a large copy.

On a GPU a copy is timed by CUDA's events and the kernels as a CUDA graph, over all weights of a model, which are more bytes
than a cache holds; beside them the dense form as it is written first, by torch.compile. On a CPU the blocked backend takes the
kernel's place.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from measuring import peak_bytes, ratios, seconds, spread, take_turns
from models import QV_WEIGHTS
from penalty import SCALING, Weight, captured, dense_autograd, dense_form, run_all

from alora_trainer.importance.recording.estimators import StepFactors
from alora_trainer.importance.recording.fold import fold_steps
from alora_trainer.penalty.backends.choice import choose
from alora_trainer.weights.steps import Factors
from gpu_parts.schedule import Budget, Figures
from gpu_parts.settings import Settings
from gpu_parts.training import clear_up

FORMATS = ("float32", "bfloat16", "log8")
RANKS = (8, 64)


def by_events(work: Callable[[], Any]) -> float:
    """Seconds on the GPU between two events around `work`."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def clock(settings: Settings) -> Callable[[Callable[[], Any]], float]:
    return by_events if settings.cuda else lambda work: seconds("cpu", work)


def copy_bandwidth(settings: Settings) -> float:
    """Bytes a second, read and written, of a copy of 4 GiB (of 1 MiB, quick)."""
    source = torch.empty((1 << 18) if settings.quick else (1 << 30), device=settings.device)
    target = torch.empty_like(source)
    times = take_turns(settings.device, 10, {"": lambda: target.copy_(source)}, clock(settings))[""]
    return 2 * source.nbytes / statistics.median(times)


def bandwidth_shares(settings: Settings, figures: Figures, budget: Budget) -> None:
    """A part: both models' q and v, by format and rank; then the fold of recording, which reads and writes w."""
    figures["copy_bytes_a_second"] = copy_bandwidth(settings)
    models = {"tiny": [(48, 80), (32, 48)]} if settings.quick else QV_WEIGHTS
    for model, shapes in models.items():
        figures[model] = {}
        for rank in RANKS[:1] if settings.quick else RANKS:
            figures[model][f"rank {rank}"] = rows = {}
            for storage in FORMATS:
                reason = budget.fits(5 if settings.cuda else 0)
                rows[storage] = {"skipped": reason} if reason else _share(shapes, rank, storage, settings, figures)
                clear_up(settings.device)
        reason = budget.fits(5 if settings.cuda else 0)
        figures[model]["fold of recording"] = {"skipped": reason} if reason else _fold(shapes, settings, figures)
        figures[model]["dense form"] = _dense(shapes, settings, budget)
        clear_up(settings.device)


def _graph(settings: Settings, work: Callable[[], Any]) -> Callable[[], Any]:
    return captured(work) if settings.cuda else work


def _share(
    shapes: list[tuple[int, int]], rank: int, storage: str, settings: Settings, figures: Figures
) -> dict[str, Any]:
    weights = [Weight(shape, rank, storage, settings.device) for shape in shapes]
    backend = choose(weights[0].stored, settings.device, "triton" if settings.cuda else "blocked")
    launched = lambda: run_all(weights, backend)  # noqa: E731
    works = {"kernel": _graph(settings, launched), "launched": launched}
    times = take_turns(settings.device, settings.rounds, works, clock(settings))
    read = sum(weight.stored.nbytes for weight in weights)
    copied = figures["copy_bytes_a_second"]
    return {
        "backend": backend.name,
        "bytes_read": read,
        "share_of_copy_bandwidth": read / statistics.median(times["kernel"]) / copied,
        "share_with_launches": read / statistics.median(times["launched"]) / copied,
        "seconds": {name: spread(values) for name, values in times.items()},
        "temporary_bytes": peak_bytes(settings.device, launched),
    }


def _fold(shapes: list[tuple[int, int]], settings: Settings, figures: Figures) -> dict[str, Any]:
    """One step's fold into w, which is read and written once."""
    device = settings.device
    folds = []
    for m, n in shapes:
        gradient, movement = (
            Factors(torch.randn(m, 16, device=device), torch.randn(16, n, device=device)) for _ in range(2)
        )
        folds.append((torch.zeros(m, n, device=device), [StepFactors(gradient, movement)]))

    def all_of_them() -> None:
        for w, steps in folds:
            fold_steps(w, steps)

    times = take_turns(device, settings.rounds, {"": _graph(settings, all_of_them)}, clock(settings))[""]
    moved = sum(2 * w.nbytes for w, _ in folds)
    return {
        "bytes_moved": moved,
        "share_of_copy_bandwidth": moved / statistics.median(times) / figures["copy_bytes_a_second"],
        "seconds": spread(times),
    }


def _dense(shapes: list[tuple[int, int]], settings: Settings, budget: Budget) -> dict[str, Any]:
    """The dense form with autograd, as it stands and by torch.compile, beside ours: float32, rank 8."""
    reason = budget.fits(45 if settings.cuda else 0)
    if reason:
        return {"skipped": reason}
    how = "inductor" if settings.cuda else "eager"  # its C++ compiler would take longer than all of the rest
    compiled = torch.compile(dense_form, dynamic=False, backend=how)
    weights = [Weight(shape, RANKS[0], "float32", settings.device) for shape in shapes]
    backend = choose(weights[0].stored, settings.device)
    works: dict[str, Callable[[], Any]] = {
        "ours": lambda: run_all(weights, backend),
        "compiled": lambda: [dense_autograd(w, w.stored.parts[""], compiled) for w in weights],
        "as it stands": lambda: [dense_autograd(w, w.stored.parts[""]) for w in weights],
    }
    times = take_turns(settings.device, settings.rounds, works, clock(settings))
    return {"compiled_by": how, "backend": backend.name, "scaling": SCALING} | {
        name: {
            "times_ours": ratios(times[name], times["ours"]),
            "seconds": spread(times[name]),
            "temporary_bytes": peak_bytes(settings.device, works[name]),
        }
        for name in works
    }
