"""The plan as people read it, and as plain data."""

from __future__ import annotations

from typing import Any

from alora_trainer.basics.heartbeat import duration
from alora_trainer.experiment.recipe.plan.advice import misfits, usable_bytes
from alora_trainer.experiment.recipe.plan.sharding import NONE
from alora_trainer.experiment.recipe.plan.whole_plan import Plan, StagePlan
from alora_trainer.importance.kinds.formats import listed_formats

_UNKNOWN = "?"


def format_plan(plan: Plan) -> str:
    """Several paragraphs: the sizes, a table of the stages, disk and upload, and what would fit where something does not."""
    memory, device = plan.memory, plan.device
    lines = [
        f"{plan.recipe.name}: {plan.recipe.model.path} on {_devices(plan)}",
        "",
        f"  base model        {memory.parameters:,} parameters, {size(memory.base_bytes(plan.variant.quantization))}",
        f"  adapted weights   {len(memory.planned.weights)}, {memory.adapted_elements:,} parameters",
        f"  LoRA factors      {memory.factor_elements:,} parameters, {size(memory.factor_bytes)}",
        *_importance(plan),
        "",
        *_table(plan),
        "",
        f"  download          {size(plan.download_bytes)} (the model; data sets come on top)",
        f"  disk              {size(plan.disk_bytes)} with the checkpoints that are kept",
        "  upload            " + ", ".join(f"{name} {size(count)}" for name, count in plan.upload_bytes.items()),
        "",
        f"Times count on {device.efficiency:.0%} of {device.flops / 1e12:.4g} TFLOP/s and all of "
        f"{device.bytes_per_second / 1e9:.4g} GB/s; '{_UNKNOWN}' needs the data. Sequences are taken at their full length.",
        *_advice(plan),
    ]
    return "\n".join(lines)


def _importance(plan: Plan) -> list[str]:
    """What the recipe's own kinds of importance take; nothing where nothing is held."""
    lines = []
    if plan.recipe.needs_recording:
        lines.append(f"  w (stage A)       {size(plan.path_bytes)}, kept on: {plan.variant.omega_device}")
    if plan.recipe.needs_recording or any(not one.is_curvature for one in plan.map_bytes):
        omega = ", ".join(f"{storage} {size(plan.memory.omega_bytes(storage))}" for storage in listed_formats())
        lines.append(f"  Omega             {omega}")
    maps = [f"{one.name} {size(held)}" for one, held in plan.map_bytes.items() if one.is_curvature]
    return [*lines, f"  curvature map     {', '.join(maps)}"] if maps else lines


def _devices(plan: Plan) -> str:
    sharding = plan.sharding
    if sharding.gpus == 1:
        return plan.device.name
    how = "the model whole on each" if sharding.kind == NONE else sharding.kind
    return f"{sharding.gpus} x {plan.device.name} ({how}); bytes and steps are those of each"


def _table(plan: Plan) -> list[str]:
    rows: list[tuple[str, ...]] = [("stage", "device peak", "host peak", "steps", "tokens", "PFLOP", "time")]
    rows += [_row(stage) for stage in plan.stages]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in
                         enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]  # fmt: skip


def _row(stage: StagePlan) -> tuple[str, ...]:
    amount = stage.amount
    steps = _UNKNOWN if amount is None or amount.steps is None else f"{amount.steps:,}"
    tokens = _UNKNOWN if amount is None or amount.tokens is None else f"{amount.tokens:,}"
    return (
        stage.name,
        size(stage.held.total),
        size(stage.host_bytes),
        "" if amount is None else steps,
        "" if amount is None else tokens,
        _UNKNOWN if stage.flops is None else f"{stage.flops / 1e15:.3g}",
        _UNKNOWN if stage.seconds is None else duration(stage.seconds),
    )


def _advice(plan: Plan) -> list[str]:
    found = misfits(plan)
    if not found:
        return ["", f"All of it fits in {size(plan.device.memory_bytes)}."]
    lines = [""]
    for misfit in found:
        lines.append(
            f"{misfit.stage.name} does not fit: {size(misfit.stage.held.total)} of {size(usable_bytes(plan))} that are free. "
            "Most of it: " + _largest(misfit.stage)
        )
        for remedy in misfit.remedies:
            verdict = "fits" if remedy.fits else "is not enough"
            lines.append(f"    {' '.join(remedy.changes)}: {size(remedy.peak_bytes)}, {verdict}")
        if misfit.together is not None and len(misfit.together.changes) > 1:
            lines.append(f"    together: {' '.join(misfit.together.changes)}: {size(misfit.together.peak_bytes)}, fits")
        if misfit.together is None:
            lines.append("    nothing that is known here is enough: take a larger device or a smaller model")
    return lines


def _largest(stage: StagePlan) -> str:
    parts = sorted(stage.held.parts.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{name} {size(count)}" for name, count in parts)


def size(count: int) -> str:
    """Bytes as people write them."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain data; sizes in bytes, times in seconds."""
    memory = plan.memory
    return {
        "schema": 1,
        "recipe": plan.recipe.name,
        "model": plan.recipe.model.path,
        "device": {
            "name": plan.device.name,
            "flops": plan.device.flops,
            "efficiency": plan.device.efficiency,
            "bytes_per_second": plan.device.bytes_per_second,
            "memory_bytes": plan.device.memory_bytes,
        },
        "gpus": plan.sharding.gpus,
        "sharding": plan.sharding.kind,
        "parameters": memory.parameters,
        "adapted_weights": len(memory.planned.weights),
        "adapted_parameters": memory.adapted_elements,
        "factor_parameters": memory.factor_elements,
        "factor_bytes": memory.factor_bytes,
        "w_bytes": plan.path_bytes,
        "omega_bytes": {storage: memory.omega_bytes(storage) for storage in listed_formats()},
        "stages": {
            stage.name: stage.held.to_json()
            | {
                "host_bytes": stage.host_bytes,
                "steps": stage.amount.steps if stage.amount else None,
                "tokens": stage.amount.tokens if stage.amount else None,
                "flops": stage.flops,
                "seconds": stage.seconds,
            }
            for stage in plan.stages
        },
        "download_bytes": plan.download_bytes,
        "disk_bytes": plan.disk_bytes,
        "upload_bytes": plan.upload_bytes,
    }
