"""A recipe from end to end: data, the recording on general text, every method's training and evaluation, the results.

What is finished is not done again: every step leaves a JSON file with the settings that it depends on, and a training that
was stopped goes on from its last whole checkpoint. The output folder holds

    recipe.yaml      the recipe, resolved
    data/            the held-out general text and the domain's items as they were used
    record/          stage A: checkpoints/, map/ (an importance map), training.json
    METHOD/          stage B: checkpoints/, adapter/, training.json, samples.jsonl, result.json
    results.json     all methods that are finished
    table.md         the same as a table
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState

from alora_trainer.basics.disk_errors import disk_errors
from alora_trainer.basics.hub_ids import is_hub_id
from alora_trainer.basics.processes import is_main, launched
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods import METHODS, Method
from alora_trainer.experiment.recipe.contents import CONTENTS, by_content
from alora_trainer.experiment.recipe.model_section import refuse_adapter
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.report.method_result import MethodResult
from alora_trainer.experiment.report.results import RunResults, results_of, write_results
from alora_trainer.experiment.run.continual import run_continual
from alora_trainer.experiment.run.models import is_whole_model
from alora_trainer.experiment.run.run import Run
from alora_trainer.experiment.run.scaled import scaled_before, scaled_results
from alora_trainer.experiment.run.stage import digest
from alora_trainer.experiment.run.training_checks import check_trainings
from alora_trainer.experiment.run.working_folder import working_in


def run_recipe(
    recipe: Recipe, *, output_dir: str | Path, overwrite: bool = False, importance: str | Path | None = None
) -> RunResults:
    """Run all methods of a recipe, writing results.json and table.md anew after each of them.

    Args:
        recipe: from `load_recipe`.
        output_dir: the run's folder; what is finished in it is not done again.
        overwrite: make anew what other settings made there.
        importance: a map (folder or Hub id) to start from, instead of recording one.

    Returns:
        What results.json holds.

    Raises:
        ALoRAError: something in the recipe cannot be done, or `output_dir` holds a run with other settings. Results of
            methods that were finished before are kept.
    """
    if recipe.domains:
        if importance is not None:
            raise ALoRAError("a recipe with several domains records its own importance: leave the map out")
        return run_continual(recipe, output_dir=output_dir, overwrite=overwrite)
    run = Run(recipe, output_dir, overwrite=overwrite, importance=importance)
    if run.given is not None and not any(map(run.given.is_for, recipe.methods)):
        names = ", ".join(method.name for method in recipe.methods)
        raise ALoRAError(
            f"none of the methods ({names}) takes the importance map {importance}: "
            "leave --importance out, or name one that does"
        )
    records = recipe.needs_recording and not (run.given is not None and run.given.is_for(None))
    # What does not go together, or is refused by a library, is known before anything is computed or written.
    check_trainings(recipe, recipe.methods, recording=records)
    with working_in(run.folder):
        run.check(*recipe.methods, recording=records, scores=True)
        run.prepare_data()
        if records:
            run.record()  # before any method, so that what is wrong with the general text is known at once
        overlap = run.overlap()
        entries: dict[str, MethodResult] = {}
        for method in recipe.methods:
            entries |= _method(run, method, entries)
            found = entries | run.finished_before(entries)
            results = write_results(run.folder, recipe, found | scaled_before(run, found), overlap)
    return results


def _method(run: Run, method: Method, finished: Mapping[str, MethodResult]) -> dict[str, MethodResult]:
    """`Run.method` and its adapter's scaled forms, with the method's name in what it raises."""
    try:
        with disk_errors(run.folder):
            return {method.name: run.method(method), **scaled_results(run, method)}
    except ALoRAError as error:
        raise ALoRAError(f"method {method.name}: {error}") from error
    except Exception as error:
        kept = f"; finished methods are in {run.folder / 'results.json'}" if finished else ""
        raise RuntimeError(f"method {method.name} failed{kept}") from error


def record_recipe(recipe: Recipe, *, output_dir: str | Path, overwrite: bool = False) -> Path:
    """The importance that a recipe's `importance` names, alone: of stage A, or measured; the folder of the map.

    In several processes that were launched together (torchrun), all of them take part and one writes.

    Raises:
        ALoRAError: as `run_recipe`.
    """
    run = _joined_run(recipe, "record", output_dir, overwrite=overwrite)
    measured = recipe.measured
    if measured is None:
        check_trainings(recipe, (), recording=True)
        with working_in(run.folder):
            run.check(recording=True)
            run.record()
        return run.folder / "record" / "map"
    if launched() > 1 and not measured.is_curvature:
        raise ALoRAError(f"{measured.name} importance is measured in one process: start it without torchrun")
    check_trainings(recipe, (), recording=False)
    with working_in(run.folder):
        run.check(measured=measured)
        run.measure(measured)
    return run.folder / measured.folder / "map"


def _joined_run(recipe: Recipe, section: str, output_dir: str | Path, **settings: Any) -> Run:
    """A run by all the processes that were launched, joined as the trainer of `section` will want them.

    Raises:
        ALoRAError: as `Run`; fewer processes came together than were launched.
    """
    if launched() > 1:
        _ = recipe.training_arguments(section, Path(output_dir)).device  # makes the process group
        found = PartialState().num_processes
        if found != launched():
            raise ALoRAError(
                f"{launched()} processes were launched and {found} came together: on a machine without GPUs, set "
                f"{section}.use_cpu=true; on one with GPUs, launch one process a GPU with one torchrun command"
            )
    return Run(recipe, output_dir, several_processes=True, **settings)


def tune_recipe(
    recipe: Recipe,
    method: Method,
    *,
    output_dir: str | Path,
    overwrite: bool = False,
    importance: str | Path | None = None,
) -> Path:
    """Stage B of one method (with stage A, if it is needed, not done, and no map is given); the adapter's folder.

    In several processes that were launched together (torchrun), all of them train and one writes.

    Raises:
        ALoRAError: as `run_recipe`; the method trains nothing; a map is given to a method that takes none; several processes
            were launched for a method that trains in one.
    """
    if not method.trains:
        raise ALoRAError(f"method {method.name} trains nothing: choose another --method")
    if importance is not None and not method.takes_map:
        raise ALoRAError(f"method {method.name} takes no importance map: leave --importance out")
    if launched() > 1 and not method.trains_in_several_processes:
        raise ALoRAError(f"method {method.name} trains in one process: start it without torchrun")
    run = _joined_run(recipe, "tune", output_dir, overwrite=overwrite, importance=importance)
    records = method.needs_recording and not method.records_alone and importance is None
    if run.given is not None:
        run.given.check(method)
    check_trainings(recipe, (method,), recording=records)
    with working_in(run.folder):
        run.check(method)
        run.tune(method)
    return run.folder / method.name / "adapter"


def evaluate_recipe(
    recipe: Recipe,
    *,
    output_dir: str | Path,
    overwrite: bool = False,
    method: Method | None = None,
    adapter: str | Path | None = None,
    model: str | Path | None = None,
    with_base: bool = False,
) -> RunResults:
    """Evaluate one method trained in `output_dir`, or an adapter or a model from anywhere, or (with none) the base model.

    In several processes that were launched together (see `basics.processes.joined`), each scores its share, all return
    the same, and one writes.

    Args:
        recipe: what to evaluate on, and the base model.
        output_dir: the run's folder.
        overwrite: make anew what other settings made there.
        method: trained in that folder before.
        adapter: a PEFT adapter of the base model, a folder or Hub id.
        model: another model, such as a merged one, a folder or Hub id.
        with_base: the base model, too, to compare with.

    Returns:
        What results.json holds: this result (as `adapter` or `model`, unless it is a method) beside those that were there and
        go with the same recipe.

    Raises:
        ALoRAError: as `run_recipe`; the method was not trained here; there is no adapter or model of that name, or one is given
            for the other.
    """
    run = Run(recipe, output_dir, overwrite=overwrite, several_processes=True)
    if adapter is not None and is_whole_model(adapter):
        raise ALoRAError(f"{adapter} holds a whole model, not an adapter: give it as --model")
    if model is not None:
        refuse_adapter(str(model), instead="give it as --adapter")
    scored = [METHODS["base"]] if with_base else []
    other = next(
        ((name, source) for name, source in (("adapter", adapter), ("model", model)) if source is not None), None
    )
    if other is None and (method is not None or not with_base):
        scored.append(method or METHODS["base"])
    identity = None if other is None else _identity(run, *other)
    with working_in(run.folder):
        run.check_scores(scored, {other[0]: identity} if other is not None and identity is not None else {})
        entries = {one.name: run.trained_before(one) for one in scored}
        if other is not None and identity is not None:
            name, source = other
            placed = (source, None) if name == "adapter" else (None, str(source))
            entries[name] = MethodResult.of(run.evaluate(name, identity, *placed), {})
        methods = run.finished_before(entries) | entries
        return write_results(run.folder, recipe, methods, run.overlap()) if is_main() else results_of(recipe, methods)


def _identity(run: Run, kind: str, source: str | Path) -> str:
    """A digest of an adapter or model from anywhere, and of the base model that it is scored with.

    Raises:
        ALoRAError: there is no such folder.
    """
    known: dict[str, Any] = {kind: str(source), "base": run.recipe.resolved()["model"]}
    known["base"] = by_content("model", known["base"], CONTENTS)
    if not is_hub_id(source):
        folder = Path(source)
        if not folder.is_dir():
            raise ALoRAError(f"there is no {kind} folder {source}")
        known[kind] = CONTENTS.loaded(folder)
    return digest(known)
