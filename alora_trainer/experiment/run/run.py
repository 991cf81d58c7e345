"""One recipe in one output folder: every part of the work, each done once and remembered (see `run`)."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from alora_trainer.basics.files import read_json, write_text
from alora_trainer.basics.processes import is_main, main_first
from alora_trainer.basics.scores import Score
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods import METHODS, Method
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.report.method_result import MethodResult
from alora_trainer.experiment.report.results import method_settings
from alora_trainer.experiment.run.stage import Part
from alora_trainer.experiment.run.tune import DomainTraining

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


logger = logging.getLogger(__name__)


def check_single_process() -> None:
    """Raises ALoRAError if this is one of several processes that torchrun or the like launched."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ALoRAError(
            "a whole recipe runs in one process: for several, use `alora record`, `alora tune` and `alora eval` in turn"
        )


class Run(DomainTraining):
    """One recipe in one output folder. Each method does a part of the work unless it is finished already.

    Args:
        recipe: what to do.
        output_dir: where everything is written.
        overwrite: make anew what other settings made in this folder, instead of refusing.
        importance: start from and protect this map (a folder or Hub id), instead of recording one.
        several_processes: this one may be one of several that were launched together (for one stage alone).
        variant: names what differs from another recipe in the same folder, such as ``lam=0.1``; methods then have their folders
            at ``METHOD@VARIANT``, and share the data, the recording and whatever else does not depend on it.

    Raises:
        ALoRAError: several processes were launched, and `several_processes` is not set.
    """

    def __init__(
        self,
        recipe: Recipe,
        output_dir: str | Path,
        *,
        overwrite: bool = False,
        importance: str | None = None,
        several_processes: bool = False,
        variant: str | None = None,
    ) -> None:
        if not several_processes:
            check_single_process()
        super().__init__(recipe, Path(output_dir), importance, variant)
        self.overwrite = overwrite
        if self.folder.exists() and not self.folder.is_dir():
            raise ALoRAError(f"{self.folder} is a file: name a folder with --output_dir")
        write_text(
            self.folder / "recipe.yaml", yaml.safe_dump(self._resolved, sort_keys=False, allow_unicode=True, width=120)
        )

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's tokenizer."""
        from alora_trainer.experiment.run.models import load_tokenizer

        return load_tokenizer(self.recipe)

    def prepare_data(self) -> dict[str, Any]:
        """Write the held-out general text and the domain's items, both as evaluation and training read them.

        Returns:
            general: path by subset; train, test: paths of the domain's items; report: what was left out, and why. All paths
            are relative to the output folder.
        """
        with main_first():
            part = self._data_part()
            part.begin(overwrite=self.overwrite)
            return part.finished() or self._write_data(part)

    def _write_data(self, part: Part) -> dict[str, Any]:
        from alora_trainer.data.chat import is_chat
        from alora_trainer.data.domain import prepare_domain
        from alora_trainer.data.general import write_held_out

        recipe = self.recipe
        general = write_held_out(
            recipe.general.test, part.folder / "general", max_bytes=recipe.general.test_bytes, base=recipe.base
        )
        domain = prepare_domain(
            recipe.domain,
            base=recipe.base,
            folder=part.folder / "domain",
            seed=recipe.seed,
            tokenizer=self.tokenizer if is_chat(recipe.domain.task) else None,
        )
        outcome = {
            "general": {name: self._relative(path) for name, path in general.items()},
            "train": self._relative(domain.train),
            "test": self._relative(domain.test),
            "report": domain.report,
        }
        part.finish(outcome)
        return outcome

    def _relative(self, path: Path) -> str:
        return path.resolve().relative_to(self.folder.resolve()).as_posix()

    def record(self, *, full: bool = False) -> dict[str, Any]:
        """Stage A: train on general text and record importance into ``record/map``.

        Args:
            full: of the whole model without LoRA, into ``record_full/map``.

        Returns:
            seconds, peak_bytes, loss and steps of the training.
        """
        from alora_trainer.experiment.run.record import record_importance

        part = self._record_part(full=full)
        finished = self._begun(part)
        if finished is not None:
            return finished
        recipe = self.recipe.for_full_recording() if full else self.recipe
        cost = record_importance(recipe, self.tokenizer, part.folder, full=full)
        with main_first():
            if is_main():
                part.finish(cost)
        return cost

    def _begun(self, part: Part) -> dict[str, Any] | None:
        """Begin a part; its outcome, if it was finished before."""
        with main_first():
            part.begin(overwrite=self.overwrite)
            return part.finished()

    def fisher(self, method: Method) -> dict[str, Any]:
        """The Fisher information that `method` holds by, as ``fisher/map`` or ``fisher_batch/map``.

        Returns:
            seconds, peak_bytes, samples and steps of the estimate.
        """
        from alora_trainer.experiment.run.fisher import compute_fisher

        part = self._fisher_part(method)
        part.begin(overwrite=self.overwrite)
        finished = part.finished()
        if finished is not None:
            return finished
        cost = compute_fisher(self.recipe, method, self.tokenizer, part.folder)
        part.finish(cost)
        return cost

    def tune(self, method: Method) -> dict[str, Any]:
        """Stage B: train on the domain (after stage A, if the method needs it), saving ``METHOD/adapter``.

        Returns:
            train: seconds, peak_bytes, loss, steps and history of this training, and drift, how far it moved every adapted
            weight; record: those of stage A or of the Fisher information, if the method needs one and this run made it.
        """
        part = self._training_part(method)
        costs: dict[str, Any] = {"train": {"seconds": 0.0, "peak_bytes": 0}}
        finished = self._begun(part)
        if finished is not None:
            return finished
        if method.needs_recording and (method.is_full or self.importance is None):
            costs["record"] = self.record(full=method.is_full)
        if method.fisher_kind is not None:
            costs["record"] = self.fisher(method)
        if method.trains:
            logger.info(f"{method.name}: {method.description}")
            costs["train"] = self.train_on_domain(method, part.folder)
        with main_first():
            if is_main():
                part.finish(costs)
        return costs

    def overlap(self) -> dict[str, Any] | None:
        """Whether the text that was recorded on holds the test items (see `data.overlap`); None without a recording of ours."""
        from alora_trainer.experiment.run.observe import recorded_overlap

        record = self._record_part()
        if self.importance is not None or record.finished(overwrite=True) is None:
            return None
        settings = {"recording": record.settings, "data": self._data_part().settings}
        part = Part(self.folder / "overlap", settings, "overlap")
        part.begin(overwrite=True)  # nothing is lost: it is computed from what is at hand
        finished = part.finished()
        if finished is not None:
            return finished
        logger.info("comparing the recording text with the test items")
        test = self.folder / self.prepare_data()["test"]
        outcome = recorded_overlap(self.recipe, self.tokenizer, test=test, record=record.folder)
        part.finish(outcome)
        return outcome

    def evaluate(self, name: str, trained: str, adapter: str | Path | None, model_source: str | None = None) -> Score:
        """General ability and domain accuracy of the base model with `adapter` on it (or without any).

        Args:
            name: the folder for the result.
            trained: a digest of what the adapter or model depends on.
            adapter: a folder or Hub id.
            model_source: another model (a folder or Hub id), such as a merged one, instead of the base model.

        Returns:
            The score, as `evaluation.runner.evaluate_model` gives it.
        """
        from alora_trainer.data.tasks import get_task
        from alora_trainer.evaluation.runner import evaluate_model
        from alora_trainer.experiment.run.models import load_to_score, release_memory

        part = self._evaluation_part(name, trained)
        finished = part.finished(overwrite=self.overwrite)
        if finished is not None:
            return Score.from_json(finished, str(part.folder))
        with main_first():
            files = self.prepare_data()
        recipe = self.recipe
        logger.info(f"{name}: evaluating")
        device = recipe.training_arguments("tune", self.folder).device
        model, base = load_to_score(recipe, adapter, model_source, device)
        task = get_task(recipe.domain.task)
        part.folder.mkdir(parents=True, exist_ok=True)
        score = evaluate_model(
            model,
            self.tokenizer,
            general={subset: self.folder / path for subset, path in files["general"].items()},
            tasks={task.name: self.folder / files["test"]},
            task_specs=[task],
            config=recipe.evaluation,
            seed=recipe.seed,
            samples_path=part.folder / "samples.jsonl",
            base=base,
        )
        if is_main():
            part.finish(score.to_json())
        del model, base
        release_memory()
        return score

    def method(self, method: Method) -> MethodResult:
        """Train and evaluate one method; its entry of results.json."""
        costs = self.tune(method)
        adapter = self.folder / self.place(method) / "adapter" if method.trains else None
        part = self._training_part(method)
        return self._entry(self.evaluate(self.place(method), part.digest, adapter), costs, part.settings)

    def _entry(self, score: Score, costs: dict[str, Any], settings: Mapping[str, Any]) -> MethodResult:
        """What results.json says of a method: its score, costs, settings, and how important each layer was found."""
        recorded = "recording" in settings and self.importance is None
        table = read_json(self.folder / "record" / "map" / "layer_importance.json") if recorded else None
        norms = None if table is None else {name: row["norm"] for name, row in table.items()}
        return MethodResult.of(score, costs, settings=method_settings(settings), layer_norms=norms)

    def trained_before(self, method: Method) -> MethodResult:
        """Evaluate what an earlier command trained in this folder, whatever its training's settings were.

        Raises:
            ALoRAError: that method was not trained here.
        """
        if not method.trains:
            return self.method(method)
        stored = read_json(self.folder / method.name / "training.json")
        if stored is None:
            raise ALoRAError(
                f"{self.folder / method.name} holds no finished training: run `alora tune RECIPE --method {method.name} "
                f"--output_dir {self.folder}` first"
            )
        costs = {key: stored[key] for key in ("train", "record") if key in stored}
        adapter = self.folder / method.name / "adapter"
        return self._entry(self.evaluate(method.name, stored["settings_digest"], adapter), costs, stored["settings"])

    def finished_before(self, exclude: Mapping[str, Any]) -> dict[str, MethodResult]:
        """Entries of further methods that are finished in this folder with the same recipe."""
        entries = {}
        for method in METHODS.values():
            try:
                training = self._training_part(method)
            except ALoRAError:  # does not go with this recipe's settings, so it was not trained with them either
                continue
            evaluation = self._evaluation_part(method.name, training.digest)
            trained, scored = training.finished(overwrite=True), evaluation.finished(overwrite=True)
            if method.name not in exclude and trained is not None and scored is not None:
                entries[method.name] = self._entry(Score.from_json(scored, method.name), trained, training.settings)
        return entries
