"""Several domains in a row: one adapter learns one after the other, and importance adds up.

After each domain the model is measured on all of them and on general text: row i of the accuracy matrix is what it can do after
domain i (row 0: before the first). The output folder holds

    recipe.yaml              the recipe, resolved
    general/                 stage A, or what is measured, as a run of its own
    data/TASK/               every domain's items
    METHOD/1-TASK, 2-...     one training each: adapter/, and map/, the importance of all that was learned so far
    results.json, table.md   all methods, as they are after the last domain, with their matrices
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from alora_trainer.basics.files import write_text
from alora_trainer.basics.scores import Score
from alora_trainer.data.tasks import get_task
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods import METHODS, Method
from alora_trainer.experiment.recipe.contents import CONTENTS
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.report.method_result import ContinualScore, MethodResult, TrainingCost
from alora_trainer.experiment.report.results import RunResults, write_results
from alora_trainer.experiment.run import dependencies
from alora_trainer.experiment.run.evaluate import evaluate
from alora_trainer.experiment.run.prepare import PreparedData
from alora_trainer.experiment.run.run import Run, entry_of, write_recipe
from alora_trainer.experiment.run.stage import Stage
from alora_trainer.experiment.run.training_checks import check_trainings
from alora_trainer.experiment.run.training_recipe import as_trained
from alora_trainer.experiment.run.transfer import AccuracyMatrix, format_matrices
from alora_trainer.experiment.run.tune import Beginning, tune
from alora_trainer.experiment.run.working_folder import working_in

logger = logging.getLogger(__name__)


def check_method(method: Method) -> None:
    """Raise ALoRAError for a method that has no meaning over several domains here."""
    if not method.learns_several_domains:
        able = ", ".join(one.name for one in METHODS.values() if one.learns_several_domains)
        raise ALoRAError(f"the method {method.name} is for one domain: over several use one of {able}")


def run_continual(recipe: Recipe, *, output_dir: str | Path, overwrite: bool = False) -> RunResults:
    """Run all methods of a recipe over its `domains`; what is finished is not done again.

    Returns:
        What results.json holds.

    Raises:
        ALoRAError: as `run_recipe`; a method that is for one domain.
    """
    for method in recipe.methods:
        check_method(method)
        as_trained(recipe, method, later=True)  # what does not go together is known before anything is computed
    check_trainings(recipe, recipe.methods, recording=recipe.needs_recording)
    run = ContinualRun(recipe, Path(output_dir), overwrite=overwrite)
    with working_in(run.folder):
        run.check()
        write_recipe(recipe, run.folder)
        entries: dict[str, MethodResult] = {}
        for method in recipe.methods:
            entries[method.name] = run.method(method)
            results = write_results(run.folder, recipe, entries)
        write_text(run.folder / "table.md", (run.folder / "table.md").read_text() + "\n" + format_matrices(entries))
    return results


class ContinualRun:
    """One recipe with several domains in one output folder; to make one writes nothing.

    Args:
        recipe: with `domains`.
        folder: the output folder.
        overwrite: make anew what other settings made there.

    Raises:
        ALoRAError: two domains have one name; this is one of several processes.
    """

    def __init__(self, recipe: Recipe, folder: Path, *, overwrite: bool = False) -> None:
        self.recipe = replace(recipe, contents=CONTENTS)
        self.folder = folder
        self.overwrite = overwrite
        self.recipes = self.recipe.each_domain()
        self.tasks = tuple(get_task(each.domain.task).name for each in self.recipes)
        if len(set(self.tasks)) < len(self.tasks):
            raise ALoRAError(
                f"domains has two tasks of one name ({', '.join(self.tasks)}): give one of them another name"
            )
        # The first domain stands for all where the domain is of no matter.
        self.general = Run(self.recipes[0], folder / "general", overwrite=overwrite)
        self._files = [
            Run(one, folder / "data" / task, overwrite=overwrite)
            for one, task in zip(self.recipes, self.tasks, strict=True)
        ]

    def check(self) -> None:
        """Refuse what cannot be done in this folder, before anything is written in it.

        Raises:
            ALoRAError: one of the steps was made with other settings, or its folder is not ours.
        """
        self.general.check_tasks()
        files = [run.steps.data() for run in self._files]
        made = [self.general.steps.importance(method) for method in self.recipe.methods]
        trained = [stage for method in self.recipe.methods for stage in self._trainings(method)]
        for stage in (*files, *made, *trained):
            if stage is not None:
                stage.check(overwrite=self.overwrite)
        for method in self.recipe.methods:
            for stage in self._scores(method):
                stage.finished(overwrite=self.overwrite)

    def method(self, method: Method) -> MethodResult:
        """Train and evaluate one method over all domains; its entry of results.json."""
        made = self.general.importance_of(method)
        # Methods that go on from the recording start from its adapter; all others from the base model.
        recorded = self.general.map_folder(method) if method.needs_recording else None
        trainings, evaluations = self._trainings(method), self._scores(method)
        scores = [self._evaluate(method, 0, evaluations[0], recorded)]
        costs: list[dict[str, Any]] = []
        for number, stage in enumerate(trainings, start=1):
            costs.append(self._tune(method, number, stage))
            scores.append(self._evaluate(method, number, evaluations[number], stage.folder / "adapter"))
        if not trainings:
            scores *= len(self.tasks) + 1
        train = {
            "seconds": sum(cost["seconds"] for cost in costs),
            "peak_bytes": max((cost["peak_bytes"] for cost in costs), default=0),
        }
        spent = {"train": train} | ({} if made is None else {"record": made})
        last = dependencies.trainings(self.recipe, method)[-1]
        entry = entry_of(scores[-1], spent, last.settings, recorded)
        return replace(entry, continual=self._transfer(scores, costs))

    def _trainings(self, method: Method) -> list[Stage]:
        """Those on each domain in turn; none of a method that trains nothing."""
        if not method.trains:
            return []
        steps = enumerate(dependencies.trainings(self.recipe, method), start=1)
        return [Stage(self._folder(method, number), step.settings, "training") for number, step in steps]

    def _scores(self, method: Method) -> list[Stage]:
        """The evaluations before the first domain and after each."""
        digests = [dependencies.start(self.recipe, method).digest]
        digests += [stage.digest for stage in self._trainings(method)]
        return [
            Stage(self._folder(method, number), dependencies.scores(self.recipes, trained).settings, "result")
            for number, trained in enumerate(digests)
        ]

    def _transfer(self, scores: list[Score], costs: list[dict[str, Any]]) -> ContinualScore:
        """What results.json says of the domains' effect on each other."""
        rows = tuple(tuple(_measured(score.tasks[task].acc) for task in self.tasks) for score in scores)
        matrix = AccuracyMatrix(self.tasks, rows)
        return ContinualScore(
            tasks=list(self.tasks),
            accuracy=[list(row) for row in matrix.rows],
            general_perplexity=[_measured(score.general.token_perplexity) for score in scores],
            average_accuracy=matrix.average,
            backward_transfer=matrix.backward_transfer,
            forward_transfer=matrix.forward_transfer,
            trainings=[TrainingCost.from_json(cost, "training") for cost in costs],
        )

    def _folder(self, method: Method, number: int) -> Path:
        """Of the domain of this number, from 1; 0 is before the first."""
        return self.folder / method.name / ("0-start" if number == 0 else f"{number}-{self.tasks[number - 1]}")

    def _data(self) -> list[PreparedData]:
        return [run.prepare_data() for run in self._files]

    def _tune(self, method: Method, number: int, stage: Stage) -> dict[str, Any]:
        stage.begin(overwrite=self.overwrite)
        finished = stage.finished()
        if finished is not None:
            return finished
        logger.info(f"{method.name}: domain {number} of {len(self.tasks)}, {self.tasks[number - 1]}")
        outcome = tune(
            self.recipes[number - 1],
            method,
            self._beginning(method, number),
            self._data()[number - 1],
            self.general.tokenizer,
            stage.folder,
            records=dependencies.records_for_later(method, number - 1, len(self.tasks)),
        )
        stage.finish(outcome)
        return outcome

    def _beginning(self, method: Method, number: int) -> Beginning:
        """What the training on the domain of this number goes on from.

        Where importance adds up, it is held by that of all that was learned before it; what is measured stays the base's.
        """
        importance = first = self.general.map_folder(method)
        before = self._folder(method, number - 1) if number > 1 else None
        if before is not None and method.importance == "recorded":
            importance = before / "map"
        learned = before / "adapter" if before is not None else None
        return Beginning(importance, learned, sampled=first.parent if first is not None else None)

    def _evaluate(self, method: Method, number: int, stage: Stage, adapter: Path | None) -> Score:
        """General ability and all domains, after `number` of them."""
        finished = stage.finished(overwrite=self.overwrite)
        if finished is not None:
            return Score.from_json(finished, str(stage.folder))
        logger.info(f"{method.name}: evaluating after {number} of {len(self.tasks)} domains")
        score = evaluate(self.recipes, self._data(), self.general.tokenizer, stage.folder, adapter=adapter)
        stage.finish(score.to_json())
        return score


def _measured(value: float | None) -> float:
    return math.nan if value is None else value
