"""Several domains in a row: one adapter learns one after the other, and importance adds up.

After each domain the model is measured on all of them and on general text: row i of the accuracy matrix is what it can do after
domain i (row 0: before the first). The output folder holds

    recipe.yaml              the recipe, resolved
    general/                 stage A, or the Fisher information, as a run of its own
    data/TASK/               every domain's items
    METHOD/1-TASK, 2-...     one training each: adapter/, and map/, the importance of all that was learned so far
    results.json, table.md   all methods, as they are after the last domain, with their matrices
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from alora_trainer.basics.files import write_text
from alora_trainer.basics.scores import Score
from alora_trainer.data.tasks import get_task
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods import Method
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.report.method_result import ContinualScore, MethodResult
from alora_trainer.experiment.report.results import RunResults, write_results
from alora_trainer.experiment.run.run import Run
from alora_trainer.experiment.run.stage import Part
from alora_trainer.experiment.run.transfer import AccuracyMatrix, format_matrices
from alora_trainer.trainer.config import PROTECTING

logger = logging.getLogger(__name__)


def check_method(method: Method) -> None:
    """Raise ALoRAError for a method that has no meaning over several domains here."""
    plain = method.technique is None and method.adapter in ("lora", "mlp_lora")
    if not plain or method.importance not in (None, "recorded", "fisher", "fisher_batch"):
        raise ALoRAError(
            f"the method {method.name} is for one domain: over several use base, lora, lora_ab, rslora, mlp_only, ewclora, "
            "ewclora_batch, alora or alora_no_layer"
        )


def run_continual(recipe: Recipe, *, output_dir: str | Path, overwrite: bool = False) -> RunResults:
    """Run all methods of a recipe over its `domains`; what is finished is not done again.

    Returns:
        What results.json holds.

    Raises:
        ALoRAError: as `run_recipe`; a method that is for one domain.
    """
    for method in recipe.methods:
        check_method(method)
    run = ContinualRun(recipe, Path(output_dir), overwrite=overwrite)
    entries: dict[str, MethodResult] = {}
    for method in recipe.methods:
        entries[method.name] = run.method(method)
        results = write_results(run.folder, recipe, entries)
    write_text(run.folder / "table.md", (run.folder / "table.md").read_text() + "\n" + format_matrices(entries))
    return results


class ContinualRun:
    """One recipe with several domains in one output folder.

    Args:
        recipe: with `domains`.
        folder: the output folder.
        overwrite: make anew what other settings made there.
    """

    def __init__(self, recipe: Recipe, folder: Path, *, overwrite: bool = False) -> None:
        self.recipe = recipe
        self.folder = folder
        self.overwrite = overwrite
        self.recipes = recipe.each_domain()
        self.tasks = tuple(get_task(each.domain.task).name for each in self.recipes)
        if len(set(self.tasks)) < len(self.tasks):
            raise ALoRAError(
                f"domains has two tasks of one name ({', '.join(self.tasks)}): give one of them another name"
            )
        # The first domain stands for all where the domain is of no matter.
        self.general = Run(self.recipes[0], folder / "general", overwrite=overwrite)

    @cached_property
    def _runs(self) -> list[Run]:
        """A run a domain, for its data alone."""
        return [
            Run(recipe, self.folder / "data" / task, overwrite=self.overwrite)
            for recipe, task in zip(self.recipes, self.tasks, strict=True)
        ]

    def method(self, method: Method) -> MethodResult:
        """Train and evaluate one method over all domains; its entry of results.json."""
        entry: dict[str, Any] = {}
        if method.needs_recording:
            entry["record"] = self.general.record()
        elif method.fisher_kind is not None:
            entry["record"] = self.general.fisher(method)
        # Methods that go on from the recording start from its adapter; all others from the base model.
        start = self.general.importance_folder(method) if method.needs_recording else None
        outcomes = [self._evaluate(method, 0, "", start)]
        costs: list[dict[str, Any]] = []
        if method.trains:
            for position in range(len(self.tasks)):
                part = self._training_part(method, position)
                costs.append(self._train(method, position, part))
                outcomes.append(self._evaluate(method, position + 1, part.digest, part.folder / "adapter"))
        else:
            outcomes *= len(self.tasks) + 1
        matrix = AccuracyMatrix(
            self.tasks, tuple(tuple(_accuracy(score, task) for task in self.tasks) for score in outcomes)
        )
        train = {
            "seconds": sum(cost["seconds"] for cost in costs),
            "peak_bytes": max((cost["peak_bytes"] for cost in costs), default=0),
        }
        continual = ContinualScore(
            tasks=list(self.tasks),
            accuracy=[list(row) for row in matrix.rows],
            general_perplexity=[math.nan if (p := o.general.token_perplexity) is None else p for o in outcomes],
            average_accuracy=matrix.average,
            backward_transfer=matrix.backward_transfer,
            forward_transfer=matrix.forward_transfer,
        )
        return MethodResult.of(outcomes[-1], entry | {"train": train}, continual=continual)

    # ---- one domain ----

    def _training_part(self, method: Method, position: int) -> Part:
        recipe = self.recipes[position].for_method(method)
        resolved = recipe.resolved()
        settings: dict[str, Any] = {key: resolved[key] for key in ("model", "seed", "domain", "tune", "lora")}
        settings |= {"method": method.name, "records": self._records(method, position)}
        if method.penalty:
            settings["protecting"] = {key: getattr(recipe.alora, key) for key in PROTECTING}
        if position == 0:
            settings["start"] = self.general.importance_settings(method)
        else:
            settings["before"] = self._training_part(method, position - 1).digest
        return Part(self._folder(method, position + 1), settings, "training")

    def _folder(self, method: Method, number: int) -> Path:
        return self.folder / method.name / ("0-start" if number == 0 else f"{number}-{self.tasks[number - 1]}")

    def _records(self, method: Method, position: int) -> bool:
        """Whether this domain's importance is recorded for the ones that come after it."""
        return method.importance == "recorded" and position + 1 < len(self.tasks)

    def _train(self, method: Method, position: int, part: Part) -> dict[str, Any]:
        from alora_trainer.artefact.importance_map import ImportanceMap
        from alora_trainer.data.domain import collator, tokenize_domain
        from alora_trainer.experiment.run.facts import cost_facts, domain_facts
        from alora_trainer.experiment.run.models import release_memory
        from alora_trainer.experiment.run.train import train
        from alora_trainer.trainer.mixin import ALoRATrainer
        from alora_trainer.trainer.publishing import save_protected_adapter

        part.begin(overwrite=self.overwrite)
        finished = part.finished()
        if finished is not None:
            return finished
        recipe, run = self.recipes[position].for_method(method), self._runs[position]
        logger.info(f"{method.name}: domain {position + 1} of {len(self.tasks)}, {self.tasks[position]}")
        files = run.prepare_data()
        data = tokenize_domain(
            get_task(recipe.domain.task),
            run.folder / files["train"],
            run.tokenizer,
            max_length=recipe.domain.max_length,
            loss_on=recipe.domain.loss_on,
            too_long=recipe.domain.too_long,
        )
        map_folder = self._map_folder(method, position)
        importance = None
        if map_folder is not None:
            importance = ImportanceMap.from_pretrained(map_folder, storage=recipe.alora.storage)
        records = self._records(method, position)
        trainer = ALoRATrainer(
            self._model(method, position),
            recipe.training_arguments("tune", part.folder / "checkpoints"),
            train_dataset=data,
            data_collator=collator(run.tokenizer),
            importance=importance,
            alora=replace(recipe.alora, record=recipe.alora.record if records else None) if method.penalty else None,
        )
        cost = train(trainer)
        trainer.model.save_pretrained(str(part.folder / "adapter"))
        learned = domain_facts(recipe)
        if method.penalty:
            save_protected_adapter(trainer, part.folder / "adapter", data=learned)
        if records:
            assert trainer.importance is not None
            recorded = trainer.importance.with_info(data=learned, cost=cost_facts(cost, trainer.args.device))
            recorded.save_pretrained(part.folder / "map", storage=recipe.alora.save_storage)
        part.finish(cost)
        del trainer, importance
        release_memory()
        return cost

    def _model(self, method: Method, position: int) -> Any:
        from alora_trainer.experiment.run.models import load_base, with_saved_adapter

        if position > 0:
            before = self._folder(method, position) / "adapter"
            return with_saved_adapter(load_base(self.recipe), before, trainable=True)
        return self.general.start(method, self._folder(method, 1), None, None).model

    def _map_folder(self, method: Method, position: int) -> Path | None:
        """The importance of all that was learned before this domain; that of the base model stays as it is."""
        if not method.penalty:
            return None
        if position == 0 or method.fisher_kind is not None:
            return self.general.importance_folder(method)
        return self._folder(method, position) / "map"

    def _evaluate(self, method: Method, number: int, trained: str, adapter: Path | None) -> Score:
        """General ability and all domains, after `number` of them."""
        from alora_trainer.evaluation.runner import evaluate_model
        from alora_trainer.experiment.run.models import load_base, place, release_memory, with_saved_adapter

        files = [run.prepare_data() for run in self._runs]
        evaluation = self.general.recipe.resolved()["evaluation"]
        data = [run.data_settings() for run in self._runs]
        start = self.general.importance_settings(method) if number == 0 else None
        settings = {"data": data, "evaluation": evaluation, "trained": trained, "start": start}
        part = Part(self._folder(method, number), settings, "result")
        finished = part.finished(overwrite=self.overwrite)
        if finished is not None:
            return Score.from_json(finished, str(part.folder))
        logger.info(f"{method.name}: evaluating after {number} of {len(self.tasks)} domains")
        model: Any = load_base(self.recipe)
        if adapter is not None:
            model = with_saved_adapter(model, adapter, trainable=False)
        place(model, self.recipe.training_arguments("tune", self.folder).device)
        part.folder.mkdir(parents=True, exist_ok=True)
        runs = dict(zip(self.tasks, zip(self._runs, files, strict=True), strict=True))
        first, prepared = self._runs[0], files[0]
        score = evaluate_model(
            model,
            first.tokenizer,
            general={subset: first.folder / path for subset, path in prepared["general"].items()},
            tasks={task: run.folder / own["test"] for task, (run, own) in runs.items()},
            task_specs=[get_task(recipe.domain.task) for recipe in self.recipes],
            config=self.recipe.evaluation,
            seed=self.recipe.seed,
            samples_path=part.folder / "samples.jsonl",
        )
        part.finish(score.to_json())
        del model
        release_memory()
        return score


def _accuracy(score: Score, task: str) -> float:
    found = score.tasks[task].acc
    assert found is not None  # every task of a recipe has one
    return found
