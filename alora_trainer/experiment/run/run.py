"""One recipe of one domain in one output folder: every step of the work, each done once and remembered."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedTokenizerBase

from alora_trainer.artefact.files import LAYERS_FILE
from alora_trainer.basics.files import read_json, write_text
from alora_trainer.basics.folder_lock import check_folder
from alora_trainer.basics.processes import by_main, is_main, launched, main_first
from alora_trainer.basics.scores import Score
from alora_trainer.errors import ALoRAError
from alora_trainer.evaluation.lm_tasks import check_task_names
from alora_trainer.experiment.methods import METHODS, Method
from alora_trainer.experiment.recipe.contents import CONTENTS
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.report.method_result import MethodResult
from alora_trainer.experiment.report.results import method_settings
from alora_trainer.experiment.run import dependencies
from alora_trainer.experiment.run.evaluate import evaluate
from alora_trainer.experiment.run.general_text import check_text_to_train
from alora_trainer.experiment.run.given_map import GivenMap
from alora_trainer.experiment.run.measure import measure_importance
from alora_trainer.experiment.run.models import load_tokenizer
from alora_trainer.experiment.run.observe import recorded_overlap
from alora_trainer.experiment.run.prepare import PreparedData, write_data
from alora_trainer.experiment.run.record import record_importance
from alora_trainer.experiment.run.stage import Stage, digest
from alora_trainer.experiment.run.steps import Steps
from alora_trainer.experiment.run.training_recipe import as_trained, check_one_domain, recorded_adapter
from alora_trainer.experiment.run.tune import Beginning, tune
from alora_trainer.importance.recording.measured import Measured
from alora_trainer.weights.parameterization import Parameterization

logger = logging.getLogger(__name__)


def check_single_process() -> None:
    """Raises ALoRAError if this is one of several processes that torchrun or the like launched."""
    if launched() > 1:
        raise ALoRAError(
            "a whole recipe runs in one process: for several, use `alora record`, `alora tune` and `alora eval` in turn"
        )


class Run:
    """One recipe in one output folder. Each method does a part of the work unless it is finished already.

    To make a `Run` writes nothing; the first work does.

    Args:
        recipe: what to do, on one domain.
        output_dir: where everything is written.
        overwrite: make anew what other settings made in this folder, instead of refusing.
        importance: start from and protect this map (a folder or Hub id), instead of recording one.
        several_processes: this one may be one of several that were launched together (for one stage alone).
        variant: names what differs from another recipe in the same folder, such as ``lam=0.1``; methods then have their folders
            at ``METHOD@VARIANT``, and share the data, the recording and whatever else does not depend on it.

    Raises:
        ALoRAError: several processes were launched, and `several_processes` is not set; the recipe has several domains; the
            folder is a file.
    """

    def __init__(
        self,
        recipe: Recipe,
        output_dir: str | Path,
        *,
        overwrite: bool = False,
        importance: str | Path | None = None,
        several_processes: bool = False,
        variant: str | None = None,
    ) -> None:
        if not several_processes:
            check_single_process()
        check_one_domain(recipe)
        self.recipe = replace(recipe, contents=CONTENTS)
        self.folder = Path(output_dir)
        self.overwrite = overwrite
        self.given = None if importance is None else GivenMap(str(importance), self.recipe.alora.storage)
        self.steps = Steps(self.recipe, self.folder, variant=variant, given=self._given_to)
        self._is_begun = False
        check_folder(self.folder)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's tokenizer."""
        return load_tokenizer(self.recipe)

    def _given_to(self, method: Method | None) -> dependencies.Given | None:
        """What tells the given map from others, if it is for a method (or, for None, in the place of the recording)."""
        return self.given.identity if self.given is not None and self.given.is_for(method) else None

    def _begin_run(self) -> None:
        """Note the recipe in the folder, before any work in it; that a given map is not there is known by then."""
        if self._is_begun:
            return
        with main_first():
            if self.given is not None:
                _ = self.given.place
            if is_main():
                write_recipe(self.recipe, self.folder)
        self._is_begun = True

    # ---- the steps ----

    def check(
        self, *methods: Method, recording: bool = False, measured: Measured | None = None, scores: bool = False
    ) -> None:
        """Refuse what cannot be done in this folder (see `Steps.check`), before anything is written in it.

        A given map's own adapter is looked at, too: it is what its methods train.
        """
        for method in methods:
            has_map = self.given is not None and self.given.is_for(method)
            given = method.needs_recording and has_map
            if method.needs_general_text or ((method.penalty or method.needs_recording) and not has_map):
                check_text_to_train(self.recipe, f"method {method.name}")
            as_trained(self.recipe, method, recorded=recorded_adapter(self.map_folder(method) if given else None))
        if recording or measured is not None:
            check_text_to_train(self.recipe, "what is recorded or measured")
        if scores:
            self.check_tasks()
        looked_for: dict[str, Any] = {"recording": recording, "measured": measured, "scores": scores}
        by_main(lambda: self.steps.check(methods, **looked_for, overwrite=self.overwrite))

    def check_scores(self, methods: Sequence[Method], others: Mapping[str, str]) -> None:
        """The same for an evaluation of what was made before.

        Args:
            methods: that were trained in this folder, or need no training.
            others: a digest of anything else, by name (see `evaluate`).
        """
        self.check_tasks()
        untrained = [method for method in methods if not method.trains]
        trained = {one.name: self._digest_of(self._trained(one)) for one in methods if one.trains}

        def check() -> None:
            self.steps.check(untrained, recording=False, measured=None, scores=True, overwrite=self.overwrite)
            for name, made in {**trained, **others}.items():
                self.steps.scores(name, made).finished(overwrite=self.overwrite)

        by_main(check)

    def check_tasks(self) -> None:
        """Refuse names of lm-eval's tasks that it does not know, which would be met after the first training."""
        settings = self.recipe.evaluation
        by_main(lambda: check_task_names(settings.general_tasks, settings.task_folder))

    def _begin(self, stage: Stage) -> dict[str, Any] | None:
        """Begin a step; its outcome, if it was finished before."""
        self._begin_run()
        with main_first():
            stage.begin(overwrite=self.overwrite)
            return stage.finished()

    def _finish(self, stage: Stage, outcome: Mapping[str, Any]) -> None:
        with main_first():
            if is_main():
                stage.finish(outcome)

    def map_folder(self, method: Method) -> Path | None:
        """The map that the method starts from or is held by, made before; None for a method that has none.

        Raises:
            ALoRAError: a given map cannot be fetched.
        """
        if self.given is not None and self.given.is_for(method):
            return self.given.folder(self.recipe.for_method(method).alora.storage)
        made = self.steps.importance(method)
        return None if made is None else made.folder / "map"

    # ---- the work ----

    def prepare_data(self) -> PreparedData:
        """Write the held-out general text and the domain's items, both as evaluation and training read them."""
        self._begin_run()
        with main_first():
            return self._prepared()

    def _prepared(self) -> PreparedData:
        stage = self.steps.data()
        stage.begin(overwrite=self.overwrite)
        outcome = stage.finished()
        if outcome is None:
            outcome = write_data(self.recipe, self.tokenizer, stage.folder, self.folder)
            stage.finish(outcome)
        return PreparedData.from_outcome(outcome, self.folder)

    def record(self, method: Method | None = None) -> dict[str, Any]:
        """Stage A: train on general text and record importance into ``record/map``.

        Args:
            method: one that records alone, into ``record_METHOD/map``; of all others the recording is the same.

        Returns:
            seconds, peak_bytes, loss and steps of the training.
        """
        stage = self.steps.recording(method)
        finished = self._begin(stage)
        if finished is not None:
            return finished
        recipe, moved = self.recipe, Parameterization.ADAPTER
        if method is not None and method.records_alone:
            recipe, moved = recipe.for_own_recording(method), method.parameterization
        cost = record_importance(recipe, self.tokenizer, stage.folder, moved)
        self._finish(stage, cost)
        return cost

    def measure(self, measured: Measured, moved: Parameterization = Parameterization.ADAPTER) -> dict[str, Any]:
        """Measure importance at the base weights, into a folder of its own: ``curvature_kronecker/map``, ``fisher/map``.

        Returns:
            What `measure_importance` says of it.
        """
        stage = self.steps.measurement(measured, moved)
        finished = self._begin(stage)
        if finished is not None:
            return finished
        cost = measure_importance(self.recipe, measured, moved, self.tokenizer, stage.folder)
        self._finish(stage, cost)
        return cost

    def importance_of(self, method: Method) -> dict[str, Any] | None:
        """Make what the method starts from or is held by, if it is not there; what that cost, None where nothing was made."""
        if self.steps.importance(method) is None:
            return None
        if method.measured is None:
            return self.record(method)
        return self.measure(method.measured, method.parameterization)

    def tune(self, method: Method) -> dict[str, Any]:
        """Stage B: train on the domain (after stage A, if the method needs it), saving ``METHOD/adapter``.

        Returns:
            train: what `tune.tune` says of this training; record: the cost of stage A or of what was measured, if the
            method needs one and this run made it.
        """
        stage = self.steps.training(method)
        finished = self._begin(stage)
        if finished is not None:
            return finished
        costs: dict[str, Any] = {"train": {"seconds": 0.0, "peak_bytes": 0}}
        made = self.importance_of(method)
        if made is not None:
            costs["record"] = made
        if method.trains:
            logger.info(f"{method.name}: {method.description}")
            found = self.map_folder(method)
            beginning = Beginning(found, sampled=found.parent if found is not None and made is not None else None)
            costs["train"] = tune(self.recipe, method, beginning, self.prepare_data(), self.tokenizer, stage.folder)
        self._finish(stage, costs)
        return costs

    def overlap(self) -> dict[str, Any] | None:
        """Whether the text that was recorded on holds the test items (see `data.overlap`); None without a recording of ours."""
        if self.given is not None or not (self.folder / "record").is_dir():
            return None
        try:
            recorded, stage = self.steps.recording(), self.steps.overlap()
        except ALoRAError as error:
            logger.warning(f"the recording text is not compared with the test items: {error}")
            return None
        if recorded.finished(overwrite=True) is None:
            return None
        stage.begin(overwrite=True)  # nothing is lost: it is computed from what is at hand
        finished = stage.finished()
        if finished is not None:
            return finished
        logger.info("comparing the recording text with the test items")
        # One process alone does this, so that nothing in it may wait for others.
        outcome = recorded_overlap(self.recipe, self.tokenizer, test=self._prepared().test, record=recorded.folder)
        stage.finish(outcome)
        return outcome

    def evaluate(self, name: str, trained: str, adapter: str | Path | None, model_source: str | None = None) -> Score:
        """General ability and domain accuracy of the base model with `adapter` on it (or without any).

        Args:
            name: the folder for the result.
            trained: a digest of what the adapter or model depends on, the base model among it.
            adapter: a folder or Hub id.
            model_source: another model (a folder or Hub id), such as a merged one, instead of the base model.
        """
        self._begin_run()
        stage = self.steps.scores(name, trained)
        finished = stage.finished(overwrite=self.overwrite)
        if finished is not None:
            return Score.from_json(finished, str(stage.folder))
        with main_first():
            data = self.prepare_data()
        logger.info(f"{name}: evaluating")
        score = evaluate(
            [self.recipe], [data], self.tokenizer, stage.folder, adapter=adapter, model_source=model_source
        )
        if is_main():
            stage.finish(score.to_json())
        return score

    def method(self, method: Method) -> MethodResult:
        """Train and evaluate one method; its entry of results.json."""
        costs = self.tune(method)
        stage = self.steps.training(method)
        score = self.evaluate(
            self.steps.place(method), stage.digest, stage.folder / "adapter" if method.trains else None
        )
        return entry_of(score, costs, stage.settings, self._recorded_map(method))

    def _recorded_map(self, method: Method) -> Path | None:
        """The map that this run recorded for the method."""
        recorded = method.needs_recording and not (self.given is not None and self.given.is_for(method))
        return self.steps.recording(method).folder / "map" if recorded else None

    def trained_before(self, method: Method) -> MethodResult:
        """Evaluate what an earlier command trained in this folder, whatever its training's settings were.

        Raises:
            ALoRAError: that method was not trained here.
        """
        if not method.trains:
            return self.method(method)
        stored = self._trained(method)
        costs: dict[str, Any] = {key: stored[key] for key in ("train", "record") if key in stored}
        score = self.evaluate(method.name, self._digest_of(stored), self.folder / method.name / "adapter")
        return entry_of(score, costs, stored["settings"], self._recorded_map(method))

    def _trained(self, method: Method) -> dict[str, Any]:
        """What a finished training left to be read."""
        folder = self.folder / method.name
        stored = read_json(folder / "training.json")
        if stored is None:
            raise ALoRAError(
                f"{folder} holds no finished training: run `alora tune RECIPE --method {method.name} "
                f"--output_dir {self.folder}` first"
            )
        return dict(stored)

    def _digest_of(self, stored: Mapping[str, Any]) -> str:
        """Of a finished training and, where that is not the one that it was made with, of the base model as it is now."""
        trained, base = str(stored["settings_digest"]), dependencies.base_model(self.recipe)
        return trained if stored["settings"].get("model") == base else digest({"trained": trained, "model": base})

    def finished_before(self, exclude: Mapping[str, Any]) -> dict[str, MethodResult]:
        """Entries of further methods that are finished in this folder with the same recipe."""
        entries = {}
        for method in METHODS.values():
            try:
                training = self.steps.training(method)
            except ALoRAError:  # does not go with this recipe's settings, so it was not trained with them either
                continue
            scores = self.steps.scores(method.name, training.digest).finished(overwrite=True)
            costs = training.finished(overwrite=True)
            if method.name not in exclude and costs is not None and scores is not None:
                score = Score.from_json(scores, str(self.folder / method.name))
                entries[method.name] = entry_of(score, costs, training.settings, self._recorded_map(method))
        return entries


def write_recipe(recipe: Recipe, folder: Path) -> None:
    """Write the recipe, resolved, as ``recipe.yaml`` into a run's folder: read from there, it does the same."""
    text = yaml.safe_dump(recipe.resolved(), sort_keys=False, allow_unicode=True, width=120)
    write_text(folder / "recipe.yaml", text)


def entry_of(
    score: Score, costs: Mapping[str, Any], settings: Mapping[str, Any], recorded: Path | None
) -> MethodResult:
    """What results.json says of a method.

    Args:
        score: of the evaluation.
        costs: train, and record if the run made what the method is held by.
        settings: what its training depends on.
        recorded: the map that the run recorded for it: how important each layer was found.
    """
    table = read_json(recorded / LAYERS_FILE) if recorded is not None else None
    norms = None if table is None else {name: row["norm"] for name, row in table.items()}
    return MethodResult.of(score, costs, settings=method_settings(settings), layer_norms=norms)
