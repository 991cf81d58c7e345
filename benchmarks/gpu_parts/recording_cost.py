"""Seconds per 1,000 samples of every way to find importance, side by side, and the paper's arithmetic with them.

    stage_a     a LoRA step with the path integral recorded, and `plain` the same without
    fisher      the diagonal Fisher information, sample by sample
    official    all base weights' squared batch gradients, brought to host memory, as the official code of EWCLoRA has it
    kronecker   the passes over text; the eigenvectors are found once, and timed for one side of every size

`fisher` and `kronecker` are timed over one batch and over three: the slope is what a sample costs.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from measuring import seconds, spread, take_turns

from alora_trainer.importance.kinds.eigenbasis import eigen_side
from alora_trainer.importance.recording.curvature_checkpoint import CurvatureCheckpoint, Progress
from alora_trainer.importance.recording.curvature_passes import Passes
from alora_trainer.importance.recording.fisher import estimate_fisher
from alora_trainer.importance.recording.layer_moments import LayerMoments
from gpu_parts.schedule import Budget, Figures
from gpu_parts.settings import GPT_J, TARGETS, Settings
from gpu_parts.training import Training, base_model, clear_up, halving

SAMPLES, EPOCHS = 20_000, 5
# Table of arXiv 2501.13669: hours on the paper's machine, EWCLoRA's over ALoRA's.
PUBLISHED = {
    "GPT-J-6B": {"ewclora_hours": 27.17, "alora_hours": 1.15, "ratio": 23.6},
    "Llama-3.2-3B": {"ewclora_hours": 25.97, "alora_hours": 1.19, "ratio": 21.8},
}
BATCH = 8  # the paper's, for Fisher information


def recording_costs(model: str) -> Callable[[Settings, Figures, Budget], None]:
    """A part: one model's true shapes, its q and v adapted."""

    def run(settings: Settings, figures: Figures, budget: Budget) -> None:
        kind, shape = settings.shape(model)
        length = settings.batch[1]
        base = base_model(kind, shape, settings)
        training = Training(base, TARGETS[kind]["q,v"], batch=1, length=length, device=settings.device)
        ways = Ways(training)
        batch, _ = halving(settings, lambda samples: ways.once(samples, length), 2 if settings.quick else BATCH)
        clear_up(settings.device)
        figures |= {"model": model, "shape": shape, "batch": batch, "length": length}
        times = take_turns(
            settings.device, settings.rounds if settings.quick else 2 if model == GPT_J else 3, ways.works()
        )
        figures["measured_seconds"] = {name: spread(values) for name, values in times.items()}
        figures["seconds_a_thousand_samples"] = a_thousand(times, batch)
        figures["with_the_papers_arithmetic"] = in_the_papers_terms(figures["seconds_a_thousand_samples"], model)
        figures["eigenvectors_once"] = eigenvectors(training, settings, budget)

    return run


class Ways:
    """The ways, over the training's present batch."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.recorder = training.recorder()

    def works(self) -> dict[str, Callable[[], Any]]:
        return {
            "plain": self.training.plain,
            "stage_a": lambda: self.training.recorded(self.recorder),
            "fisher": lambda: self.fisher(1), "fisher, 3 batches": lambda: self.fisher(3),
            "kronecker": lambda: self.kronecker(1), "kronecker, 3 batches": lambda: self.kronecker(3),
            "official": self.official,
        }  # fmt: skip

    def once(self, batch: int, length: int) -> None:
        """What needs the most memory."""
        self.training.take(batch, length)
        self.training.recorded(self.recorder)
        self.fisher(1)
        self.official()

    def _batches(self, count: int) -> list[dict[str, torch.Tensor]]:
        return [{"input_ids": self.training.ids, "labels": self.training.ids}] * count

    def fisher(self, count: int) -> None:
        estimate_fisher(self.training.model, self._batches(count))

    def kronecker(self, count: int) -> None:
        """The passes of `estimate_curvature`, without the eigenvectors that it ends with."""
        moments = LayerMoments(self.training.weights, outputs=True, location="device")
        nowhere = CurvatureCheckpoint(None, 1, {})
        Passes(self.training.model, "sampled", 1, None, 0, nowhere).run(1, self._batches(count), moments, Progress())

    def official(self) -> None:
        model, factors = self.training.model, self.training.factors
        named = {name: p for name, p in model.named_parameters() if "lora_" not in name and p.is_floating_point()}
        try:
            for factor in factors:
                factor.requires_grad_(False)
            for parameter in named.values():
                parameter.requires_grad_(True)
            model(**self._batches(1)[0]).loss.backward()
            for parameter in named.values():
                if parameter.grad is not None:
                    (parameter.grad.detach().cpu() * len(self.training.ids)).square_()
        finally:
            model.zero_grad(set_to_none=True)
            for parameter in named.values():
                parameter.requires_grad_(False)
            for factor in factors:
                factor.requires_grad_(True)


def a_thousand(times: dict[str, list[float]], batch: int) -> dict[str, float]:
    """Seconds per 1,000 samples, from medians."""
    median = {name: statistics.median(values) for name, values in times.items()}
    found = {name: median[name] * 1000 / batch for name in ("plain", "stage_a", "official")}
    for name in ("fisher", "kronecker"):
        found[name] = (median[f"{name}, 3 batches"] - median[name]) / 2 * 1000 / batch
    return found


def in_the_papers_terms(costs: dict[str, float], model: str) -> dict[str, Any]:
    """Hours for 20,000 samples, stage A's for five epochs of as many, and the official way's over it, beside the paper's."""
    hours = {name: cost * SAMPLES / 1000 / 3600 for name, cost in costs.items()}
    training = {name: EPOCHS * hours[name] for name in ("plain", "stage_a")}
    recording = training["stage_a"] - training["plain"]
    return {
        "samples": SAMPLES, "epochs": EPOCHS, "hours_of_one_pass": hours, "hours_of_stage_a": training["stage_a"],
        "hours_that_recording_adds": recording,
        "official_over_stage_a": hours["official"] / training["stage_a"],
        "official_over_one_epoch_of_stage_a": hours["official"] / hours["stage_a"],
        "published": PUBLISHED[model],
        "note": "the paper does not say how many samples stage A has; five epochs of as many as the Fisher information",
    }  # fmt: skip


def eigenvectors(training: Training, settings: Settings, budget: Budget) -> dict[str, Any]:
    """Seconds of one eigendecomposition in float64 of every size, and of all together; q and v share their inputs."""
    sizes = Counter(m for m, _ in training.shapes)
    sizes.update(training.shapes[place][1] for place in range(0, len(training.shapes), 2))
    once: dict[str, float] = {}
    for size in sizes:
        reason = budget.fits(10 if settings.cuda else 0)
        if reason:
            return {"skipped": reason, "seconds_by_size": once}
        root = torch.randn(size, size, dtype=torch.float64, device=settings.device)
        matrix = root @ root.T / size
        once[str(size)] = seconds(settings.device, lambda m=matrix: eigen_side(m, 64))
    return {"seconds_by_size": once, "seconds_of_all": sum(count * once[str(size)] for size, count in sizes.items())}
