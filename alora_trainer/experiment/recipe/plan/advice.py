"""What does not fit, and what would."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from alora_trainer.experiment.recipe.plan.memory import Variant
from alora_trainer.experiment.recipe.plan.whole_plan import Plan, StagePlan


@dataclass(frozen=True)
class Remedy:
    """A change of the recipe, and what a stage would take with it.

    Attributes:
        changes: keys of the recipe with their values, as a command line has them.
        peak_bytes: of the device.
        fits: whether that is less than the device has.
    """

    changes: tuple[str, ...]
    peak_bytes: int
    fits: bool


@dataclass(frozen=True)
class Misfit:
    """A stage that does not fit, with single remedies and the first combination of them that does."""

    stage: StagePlan
    remedies: list[Remedy]
    together: Remedy | None


def usable_bytes(plan: Plan) -> int:
    """What the device has for tensors."""
    return plan.device.memory_bytes - plan.device.overhead_bytes


def misfits(plan: Plan) -> list[Misfit]:
    """The stages that need more than the device has, each with what would help."""
    return [_misfit(plan, stage) for stage in plan.stages if stage.held.total > usable_bytes(plan)]


def _misfit(plan: Plan, stage: StagePlan) -> Misfit:
    remedies = [_try(plan, stage, *step) for step in _steps(plan, stage)]
    helpful = [remedy for remedy in remedies if remedy.peak_bytes < stage.held.total]
    variant, together = plan.variant, None
    changes: tuple[str, ...] = ()
    for change, key in _steps(plan, stage):
        # One of a kind is enough: a later one of the same key takes the place of the earlier.
        names = {text.split(" ")[0] for text in key}
        changes = (*(text for text in changes if text.split(" ")[0] not in names), *key)
        variant = _over(variant, change)
        attempt = _measure(plan, stage, variant, changes)
        if attempt.fits:
            together = attempt
            break
    return Misfit(stage, helpful, together)


def _steps(plan: Plan, stage: StagePlan) -> Iterator[tuple[dict[str, object], tuple[str, ...]]]:
    """Changes that may help this stage, the cheapest in speed first."""
    section = "record" if stage.name == "record" else "tune"
    if stage.name == "record" and plan.variant.omega_device == "device":
        yield {"omega_device": "cpu"}, ("--alora.omega_device cpu",)
    if "Omega" in stage.held.parts:
        yield {"storage": "log8"}, ("--alora.storage log8",)
        yield {"storage": "factored"}, ("--alora.storage factored",)
    if stage.amount is None:
        yield {"batch_divisor": 4}, ("--evaluation.batch_size a quarter",)
    elif not stage.name.startswith("measure"):
        if not plan.variant.checkpointing:
            yield {"checkpointing": True}, (f"--{section}.gradient_checkpointing true",)
        size, accumulation = stage.amount.batch_size, stage.amount.micro_batches
        for divisor in (2, 4, 8, 16, 32):
            if size % divisor == 0:
                yield (
                    {"batch_divisor": divisor},
                    (
                        f"--{section}.per_device_train_batch_size {size // divisor}",
                        f"--{section}.gradient_accumulation_steps {accumulation * divisor}",
                    ),
                )
    if plan.variant.quantization is None:
        yield {"quantization": "nf4"}, ("--model.quantization nf4",)


def _over(variant: Variant, change: dict[str, object]) -> Variant:
    return replace(variant, **change)  # type: ignore[arg-type]


def _try(plan: Plan, stage: StagePlan, change: dict[str, object], key: tuple[str, ...]) -> Remedy:
    return _measure(plan, stage, _over(plan.variant, change), key)


def _measure(plan: Plan, stage: StagePlan, variant: Variant, changes: tuple[str, ...]) -> Remedy:
    peak = stage.peak_of(variant).total
    return Remedy(changes, peak, peak <= usable_bytes(plan))
