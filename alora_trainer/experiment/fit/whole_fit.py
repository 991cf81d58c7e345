"""A fit from end to end. The result's folder holds

recipe.yaml      an ordinary recipe, commented; `alora run` takes it as it stands
data/            the items and the general text in its parts, and found.json: what was found, and left out
probes/          with `probing`, the short trainings that found the learning rate and the method
run/             the training of that recipe, and the scores of the base model and of the adapter (see `run.whole_recipe`)
adapter/         what came out: a plain adapter of PEFT's, with its card
promise/         promise.json: what could be promised, and the losses that it rests on
report.html      all of it, for people
versions.lock    the packages that it was made with
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from alora_trainer.basics.files import read_json, write_text
from alora_trainer.errors import ALoRAError
from alora_trainer.evaluation.kept_prompts import kept_task
from alora_trainer.experiment.fit.draft import steps_of
from alora_trainer.experiment.fit.earlier import note_map, with_earlier, with_found_map
from alora_trainer.experiment.fit.files import write_files
from alora_trainer.experiment.fit.guarantee import keep_promise
from alora_trainer.experiment.fit.look import digests
from alora_trainer.experiment.fit.page import fit_page
from alora_trainer.experiment.fit.prepared import Prepared, prepare
from alora_trainer.experiment.fit.probing import PROBES, Probing, ShortTraining
from alora_trainer.experiment.fit.request import FitRequest
from alora_trainer.experiment.fit.set_aside import PAGE, as_it_lies, refuse_own_folder, set_aside
from alora_trainer.experiment.methods import get_method
from alora_trainer.experiment.recipe.contents import CONTENTS, by_content
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.report.gate import run_gate
from alora_trainer.experiment.report.method_result import TrainingCost
from alora_trainer.experiment.report.results import RunResults
from alora_trainer.experiment.run.stage import Stage
from alora_trainer.experiment.run.whole_recipe import evaluate_recipe, tune_recipe
from alora_trainer.experiment.run.working_folder import working_in

logger = logging.getLogger(__name__)

RECIPE, LOCK, ADAPTER = "recipe.yaml", "versions.lock", "adapter"
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class FitResult:
    """What came out.

    Attributes:
        folder: with all of it.
        adapter: the folder of the adapter.
        kept: whether the promise could be made, and the tasks of `keep` held.
        sentence: the promise, or why there is none; a line for every task of `keep`.
        promise: all figures of it (`Promise.to_json`).
        results: of the entries ``base`` and ``adapter``, which is what is in the folder, with what its training took.
    """

    folder: Path
    adapter: Path
    kept: bool
    sentence: str
    promise: Mapping[str, Any]
    results: RunResults


def init(request: FitRequest, *, overwrite: bool = False, told: Callable[[str], None] | None = None) -> Path:
    """The data's files and the recipe, ready to be changed and run; the recipe's path.

    Args:
        request, overwrite, told: as of `run_fit`.

    Raises:
        ALoRAError: as `prepare`; there is another recipe in the folder.
    """
    refuse_own_folder(request)
    request = with_earlier(request)
    prepared = prepare(request)
    (told or logger.info)(prepared.found.text())
    with working_in(request.output_dir):
        _data(request, prepared, overwrite)
        _recipe(prepared, overwrite)
    return request.output_dir / RECIPE


def run_fit(request: FitRequest, *, overwrite: bool = False, told: Callable[[str], None] | None = None) -> FitResult:
    """The whole: what is finished in the folder is not done again.

    Args:
        request: what is asked for.
        overwrite: make anew what other data or settings made in the folder.
        told: takes what was found in the data, in words, before anything is computed; None logs it.

    Raises:
        ALoRAError: as `prepare`; the folder holds a fit of other data.
    """
    request.check_overrides_of_fit()
    folder, asked = request.output_dir, request
    aside = set_aside(asked)
    request = with_earlier(as_it_lies(asked))
    prepared = prepare(request)
    (told or logger.info)(prepared.found.text())
    with working_in(folder):
        if aside is not None and not aside.moved:
            aside.move()  # what could be wrong with the data is known by now
            request = with_earlier(as_it_lies(asked))
            prepared = prepare(request)
        request = with_found_map(request)
        note_map(request)
        data = _data(request, prepared, overwrite)
        tried: list[ShortTraining] = []
        if request.probing:
            request, prepared, tried = _probed(request, prepared)
        _recipe(prepared, overwrite)
        recipe = load_recipe(folder / RECIPE)
        where: dict[str, Any] = {"output_dir": folder / "run", "overwrite": overwrite}
        evaluate_recipe(recipe, **where)  # the base model, so that what cannot be scored is known before the training
        trained = tune_recipe(recipe, get_method(request.method), importance=request.importance, **where).parent
        outcome = _promised(request, recipe, trained, prepared)
        results = _scored(request, recipe, trained)
        name = f"{Path(request.model).name} on {', '.join(Path(one).name for one in request.data)}"
        write_text(folder / PAGE, fit_page(name, outcome, data, results, tried))
        write_text(folder / LOCK, "".join(f"{line}\n" for line in locked_versions()))
    promise = outcome["promise"]
    checks = run_gate(results.methods, ADAPTER, keep={kept_task(one): least for one, least in request.keep.items()})
    kept = bool(promise["kept"]) and all(check.passed for check in checks)
    sentence = "\n".join([promise["sentence"], *map(str, checks)])
    return FitResult(folder, folder / "adapter", kept, sentence, promise, results)


def fit(
    model: str | Path,
    data: str | Path | Sequence[str | Path],
    *,
    max_general_rise: float = 0.01,
    output_dir: str | Path = "fit",
    overwrite: bool = False,
    **settings: Any,
) -> FitResult:
    """Learn `data` with a LoRA adapter on `model` whose general loss rises by `max_general_rise` at most; see docs/fit.md.

    Args:
        model: a folder or Hub id.
        data: files, folders, patterns or Hub data sets, one or several.
        max_general_rise: as a share of the base model's mean negative log-likelihood a token, on general text.
        output_dir: the result's folder ("fit" in the working directory); called again with it, this goes on where it was
            stopped.
        overwrite: make anew what other data or settings made there.
        settings: more fields of `FitRequest`: general, test, unseen, importance, epochs, max_steps, seed; keep
            ("hellaswag=-1pt", one or several, or a mapping), overrides ({"lora.r": 16}: plain values or texts), ...

    Returns:
        what came out; ``result.kept`` says whether the promise could be made.

    Raises:
        ALoRAError: something that is asked for cannot be used; the message says what to do.
    """
    lists: dict[str, Any] = {
        key: _several(settings.pop(key)) for key in ("test", "general", "unseen", "tried") if key in settings
    }
    if settings.get("after") is not None:
        settings["after"] = Path(settings["after"])
    request = FitRequest(
        model=str(model),
        data=_several(data),
        output_dir=Path(output_dir),
        max_general_rise=max_general_rise,
        **lists,
        **settings,
    )
    return run_fit(request, overwrite=overwrite)


def _several(given: str | Path | Sequence[str | Path]) -> tuple[str, ...]:
    return (str(given),) if isinstance(given, (str, Path)) else tuple(map(str, given))


def _data(request: FitRequest, prepared: Prepared, overwrite: bool) -> dict[str, Any]:
    """The files of the data, written unless they are there; their counts."""
    folder = request.output_dir
    model = by_content("model", prepared.recipe.resolved()["model"], CONTENTS)
    stage = Stage(folder / "data", digests(request, model), "written")
    stage.begin(overwrite=overwrite)
    facts = stage.finished()
    if facts is None:
        facts = write_files(request, prepared.found, prepared.recipe, prepared.tokenizer, folder / "data")
        stage.finish(facts)
    return facts


def _recipe(prepared: Prepared, overwrite: bool) -> None:
    """The recipe's file, written unless it is there."""
    path = prepared.folder / RECIPE
    if path.exists() and path.read_text(encoding="utf-8") != prepared.text and not overwrite:
        raise ALoRAError(
            f"{path} is another recipe than this command writes: run it with `alora run {path}`, pass --overwrite, or choose "
            "another --output_dir"
        )
    write_text(path, prepared.text)


def _probed(request: FitRequest, prepared: Prepared) -> tuple[FitRequest, Prepared, list[ShortTraining]]:
    """The fit with the method and the learning rate that short trainings found, and the map that held them."""
    probing = Probing(
        prepared.written,
        request.output_dir,
        steps_of(request, len(prepared.found.train)),
        request.probing,
        request.importance,
        prepared.tokenizer,
        request.max_general_rise,
    )
    best, tried = probing.best(request.method, request.tried)
    measured = get_method(best.method).measured
    assert measured is not None  # the request was checked
    importance = request.importance or str(request.output_dir / PROBES / measured.folder / "map")
    return replace(request, method=best.method, importance=importance, tried=()), prepared.chosen(best), tried


def _promised(request: FitRequest, recipe: Recipe, trained: Path, prepared: Prepared) -> dict[str, Any]:
    """The promise of what was trained, made unless it was made before."""
    folder = request.output_dir
    finished = read_json(trained / "training.json")
    settings = {
        "training": finished["settings_digest"],
        "data": read_json(folder / "data" / "written.json")["settings_digest"],
        "budget": request.max_general_rise,
        "merged": request.merged,
    }
    stage = Stage(folder / "promise", settings, "promise")
    stage.begin(overwrite=True)  # it is made of what is at hand
    outcome = stage.finished()
    if outcome is None or not (folder / "adapter").is_dir():
        outcome = keep_promise(
            recipe,
            trained / "adapter",
            folder / "data",
            folder,
            prepared.tokenizer,
            budget=request.max_general_rise,
            merged=request.merged,
            prompt_format=prepared.found.learned.prompt_format,
        )
        stage.finish(outcome)
    return outcome


def _scored(request: FitRequest, recipe: Recipe, trained: Path) -> RunResults:
    """The results of the base model and of the adapter as it is left; what was trained before it was scaled is not scored."""
    folder = request.output_dir
    scored = evaluate_recipe(recipe, output_dir=folder / "run", adapter=folder / ADAPTER, overwrite=True)
    cost = TrainingCost.from_json(read_json(trained / "training.json")["train"], "train")
    methods = {"base": scored.methods["base"], ADAPTER: replace(scored.methods[ADAPTER], train=cost)}
    return RunResults(scored.recipe, methods, scored.environment, scored.definitions)


def locked_versions(package: str = "alora-trainer") -> list[str]:
    """``name==version`` of a package and of all that it needs, as they are installed, in the order of their names.

    What is not installed (extras, other platforms) is not there.
    """
    found: dict[str, str] = {}
    waiting = [package]
    while waiting:
        name = waiting.pop()
        key = name.lower().replace("_", "-")
        if key in found:
            continue
        try:
            own = distribution(name)
        except PackageNotFoundError:
            continue
        found[key] = own.version
        waiting += [
            match.group() for one in own.requires or () if (match := _NAME.match(one)) and "extra ==" not in one
        ]
    return [f"{name}=={version}" for name, version in sorted(found.items())]
