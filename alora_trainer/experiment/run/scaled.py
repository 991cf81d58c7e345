"""A method's finished adapter times a number, scored: the curve from the base model to it (`evaluation.scales`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from alora_trainer.artefact.scaled_adapter import scale_adapter
from alora_trainer.basics.files import remove_folder
from alora_trainer.basics.scores import Score
from alora_trainer.experiment.methods import METHODS, Method
from alora_trainer.experiment.report.method_result import SCALE, MethodResult
from alora_trainer.experiment.run.run import Run, entry_of
from alora_trainer.experiment.run.stage import Stage, digest


def scaled_results(run: Run, method: Method) -> dict[str, MethodResult]:
    """Score a method's adapter, trained before, times each of `evaluation.scales`, by the names that results.json has.

    Each is written to a folder of its own, ``METHOD@scale=0.5/adapter``, an ordinary PEFT adapter.

    Raises:
        ALoRAError: the adapter cannot be scaled.
    """
    entries = {}
    for scale, trained, scores in _steps(run, method):
        name, folder = run.steps.place(method, scale), scores.folder / "adapter"
        if scores.finished(overwrite=run.overwrite) is None:
            if folder.exists():  # of a process that was stopped, or of what was trained before
                remove_folder(folder)
            scale_adapter(run.steps.training(method).folder / "adapter", scale, folder)
        entries[name] = _entry(run, method, scale, run.evaluate(name, trained, folder))
    return entries


def scaled_before(run: Run, done: Mapping[str, MethodResult]) -> dict[str, MethodResult]:
    """The same of all methods in `done`, as far as it is finished already; nothing is computed."""
    entries = {}
    for method in METHODS.values():
        for scale, _, scores in _steps(run, method) if run.steps.place(method) in done else ():
            found = scores.finished(overwrite=True)
            if found is not None:
                name = run.steps.place(method, scale)
                entries[name] = _entry(run, method, scale, Score.from_json(found, str(scores.folder)))
    return entries


def _steps(run: Run, method: Method) -> Iterator[tuple[float, str, Stage]]:
    """Each number, a digest of what the adapter times it depends on, and its evaluation."""
    if not method.can_be_scaled:
        return
    made = run.steps.training(method).digest
    for scale in run.recipe.evaluation.scales:
        trained = digest({"trained": made, SCALE: scale})
        yield scale, trained, run.steps.scores(run.steps.place(method, scale), trained)


def _entry(run: Run, method: Method, scale: float, score: Score) -> MethodResult:
    training = run.steps.training(method)
    costs = training.finished(overwrite=True) or {}
    return entry_of(score, costs, {**training.settings, SCALE: scale}, None)
