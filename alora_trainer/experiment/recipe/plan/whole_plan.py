"""What a plan is made of: its stages, and what all of them take together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from alora_trainer.experiment.recipe.plan.amounts import Amount
from alora_trainer.experiment.recipe.plan.devices import Device
from alora_trainer.experiment.recipe.plan.memory import Memory, MemoryModel, Variant
from alora_trainer.experiment.recipe.plan.sharding import Sharding
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.importance.recording.measured import Measured


@dataclass(frozen=True)
class StagePlan:
    """One stage.

    Attributes:
        name: "record", "measure IMPORTANCE", "choose METHOD", "tune METHOD" or "evaluate".
        held: what the device holds at its peak.
        host_bytes: what the host holds at its peak, the Python process with its libraries included.
        amount: steps and tokens; None for an evaluation.
        flops: of the whole stage, None where the number of steps is not known.
        seconds: on the plan's device; None likewise.
        peak_of: what the device holds if a variant is taken instead.
    """

    name: str
    held: Memory
    host_bytes: int
    amount: Amount | None
    flops: float | None
    seconds: float | None
    peak_of: Callable[[Variant], Memory] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Plan:
    """What a recipe will take.

    Attributes:
        recipe, device, sharding: what was planned; all that is held is each device's.
        variant: what the recipe itself chooses.
        memory: the bytes behind it.
        stages: in the order of the run; full tunings (`si_full`, `ewc_full`), which are for small models, are left out.
        download_bytes: the model's; data sets are not counted.
        path_bytes: w of stage A, where there is one.
        map_bytes: of each map that is measured at the base weights.
        disk_bytes: of the output folder, at the end and with its checkpoints.
        upload_bytes: of each importance map that is made and of one adapter, by name.
    """

    recipe: Recipe
    device: Device
    sharding: Sharding
    variant: Variant
    memory: MemoryModel
    stages: list[StagePlan]
    download_bytes: int
    path_bytes: int
    map_bytes: dict[Measured, int]
    disk_bytes: int
    upload_bytes: dict[str, int]
