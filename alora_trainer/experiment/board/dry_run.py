"""What a board will take, before anything is trained: how many trainings, and how long by `alora plan`'s estimate."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from alora_trainer.experiment.board.board_file import Board
from alora_trainer.experiment.board.cells import Place, final_places, validation_places
from alora_trainer.experiment.board.rows import BoardRow
from alora_trainer.experiment.methods import get_method
from alora_trainer.experiment.recipe.plan.devices import Device
from alora_trainer.experiment.recipe.plan.estimate import plan_recipe
from alora_trainer.experiment.recipe.plan.report import duration
from alora_trainer.experiment.recipe.plan.whole_plan import Plan
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.weights.parameterization import Parameterization


@dataclass(frozen=True)
class PlaceEstimate:
    """What one model and task take.

    Attributes:
        model, task: their names.
        trials, finals: how many trainings, of finals at most.
        seconds: of all on one device, one after the other; None where the plan does not know.
        unknown: rows (or stages) whose time the plan does not know.
    """

    model: str
    task: str
    trials: int
    finals: int
    seconds: float | None
    unknown: tuple[str, ...]


def estimated(
    board: Board, rows: Sequence[BoardRow], device: Device | None, tried: Collection[str] = ()
) -> list[PlaceEstimate]:
    """What a board takes, by model and task. Every setting of every trial is read and checked on the way.

    Args:
        board: the board.
        rows: those that are to run.
        device: what times are of; None for none.
        tried: names of rows whose trials were finished elsewhere (`FinishedRows`), so that only their finals run.

    Raises:
        ALoRAError: a recipe or a trial's settings cannot be used; the plan does not know the model.
    """
    return [_place(board, place, rows, device, tried) for place in validation_places(board)]


def _place(
    board: Board, place: Place, rows: Sequence[BoardRow], device: Device | None, tried: Collection[str]
) -> PlaceEstimate:
    final = final_places(board, place)[0]
    for row in rows:
        for one, trial in [*((place, trial) for trial in row.trials), (final, row.trials[0])]:
            recipe = load_recipe(place.task.recipe, one.overrides | row.overrides(trial) | {"methods": row.method})
            recipe.for_method(get_method(row.method))
    each = len(board.seeds) * min(board.points or board.trials, board.trials)
    trials_of = {row.name: 0 if row.name in tried else board.trials for row in rows}
    trials, finals = sum(trials_of.values()), len(rows) * each
    if device is None:
        return PlaceEstimate(place.model, place.task.name, trials, finals, None, ())
    seconds = {name: _seconds(_plan(one, rows, device)) for name, one in (("validation", place), ("final", final))}
    total, unknown = 0.0, []
    for row in rows:
        for name, count in (("validation", trials_of[row.name]), ("final", each)):
            training = _of_training(seconds[name], row) if count else 0.0
            if training is None:
                unknown.append(row.name)
            else:
                total += count * training
    for name, count in (("validation", 1), ("final", len(board.seeds))):
        for stage, value in seconds[name].items():
            if stage == "record" or stage.startswith("measure "):
                if value is None:
                    unknown.append(stage)
                else:
                    total += count * value
        total += count * (seconds[name]["evaluate"] or 0.0)
    return PlaceEstimate(place.model, place.task.name, trials, finals, total, tuple(dict.fromkeys(unknown)))


def _plan(place: Place, rows: Sequence[BoardRow], device: Device) -> Plan:
    return plan_recipe(_recipe(place, rows), device)


def _recipe(place: Place, rows: Sequence[BoardRow]) -> Recipe:
    """The task's recipe with all methods; what rows set for themselves is left out."""
    methods = list(dict.fromkeys(row.method for row in rows))
    return load_recipe(place.task.recipe, place.overrides | {"methods": f"[{', '.join(methods)}]"})


def _seconds(plan: Plan) -> dict[str, float | None]:
    """Of each stage; of the evaluation, for one model."""
    found = {stage.name: stage.seconds for stage in plan.stages}
    whole = found["evaluate"]
    found["evaluate"] = None if whole is None else whole / len(plan.recipe.methods)
    return found


def _of_training(seconds: dict[str, float | None], row: BoardRow) -> float | None:
    """A training of a row and its evaluation; None for what the plan leaves out or does not know."""
    if get_method(row.method).parameterization is Parameterization.FULL:
        return None
    parts = [seconds.get(f"tune {row.method}"), seconds["evaluate"]]
    if f"choose {row.method}" in seconds:
        parts.append(seconds[f"choose {row.method}"])
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def estimate_text(board: Board, estimates: Sequence[PlaceEstimate], device: Device | None, workers: int) -> str:
    """What `estimated` found, for people."""
    total = sum(one.trials + one.finals for one in estimates)
    lines = [f"{board.title}: at most {total} trainings; nothing was trained"]
    for one in estimates:
        lines.append(f"  {one.model} on {one.task}: {one.trials} trials, at most {one.finals} finals{_time(one)}")
    seconds = [one.seconds for one in estimates if one.seconds is not None]
    if device is not None and seconds:
        whole = sum(seconds)
        shared = f", {duration(whole / workers)} over {workers} workers of one such device each" if workers > 1 else ""
        lines.append(f"  by the plan's estimate {duration(whole)} on {device.name}{shared}")
        lines.append("  (sequences at their full length, processes and loading not counted: small models take longer)")
    return "\n".join(lines)


def _time(one: PlaceEstimate) -> str:
    if one.seconds is None:
        return ""
    unknown = f" (not known: {', '.join(one.unknown)})" if one.unknown else ""
    return f", {duration(one.seconds)}{unknown}"
