"""One recipe in one output folder: every part of the work, each done once and remembered (see `run`)."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from alora_trainer.errors import ALoRAError
from alora_trainer.methods import METHODS, Method
from alora_trainer.parts import Part, read_json, write_text
from alora_trainer.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from alora_trainer.importance import ImportanceMap

logger = logging.getLogger(__name__)

# The settings of `alora` that stage A does not depend on.
_PROTECTING = ("lam", "layer_weights", "normalize", "allow_other_revision", "backend")
# The settings of `domain` that its files do not depend on.
_TOKENIZING = ("max_length", "loss_on")


def check_single_process() -> None:
    """Raises ALoRAError if this is one of several processes that torchrun or the like launched."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ALoRAError("a recipe runs in one process: for several, use ALoRATrainer in a script of your own")


class Run:
    """One recipe in one output folder. Each method does a part of the work unless it is finished already.

    Args:
        recipe: what to do.
        output_dir: where everything is written.
        overwrite: make anew what other settings made in this folder, instead of refusing.
        importance: start from and protect this map (a folder or Hub id), instead of recording one.

    Raises:
        ALoRAError: several processes were launched.
    """

    def __init__(
        self, recipe: Recipe, output_dir: str | Path, *, overwrite: bool = False, importance: str | None = None
    ) -> None:
        check_single_process()
        self.recipe = recipe
        self.folder = Path(output_dir)
        self.overwrite = overwrite
        self.importance = importance
        if importance is not None:
            self.importance = _pinned(importance)  # a map that is not there is known before anything is done
        self._resolved = recipe.resolved()
        if self.folder.exists() and not self.folder.is_dir():
            raise ALoRAError(f"{self.folder} is a file: name a folder with --output_dir")
        write_text(
            self.folder / "recipe.yaml", yaml.safe_dump(self._resolved, sort_keys=False, allow_unicode=True, width=120)
        )

    # ---- the parts and what each depends on ----

    def _common(self) -> dict[str, Any]:
        return {key: self._resolved[key] for key in ("model", "seed")}

    def _data_part(self) -> Part:
        general, domain = self._resolved["general"], self._resolved["domain"]
        settings = {
            "seed": self.recipe.seed,
            "general": {key: general[key] for key in ("test", "test_bytes")},
            "domain": {key: value for key, value in domain.items() if key not in _TOKENIZING},
        }
        return Part(self.folder / "data", settings, "data")

    def _record_part(self) -> Part:
        general = self._resolved["general"]
        settings = self._common() | {
            "lora": self.recipe.lora,
            "general": {key: value for key, value in general.items() if key not in ("test", "test_bytes")},
            "record": self.recipe.record,
            "alora": {key: value for key, value in self._resolved["alora"].items() if key not in _PROTECTING},
        }
        return Part(self.folder / "record", settings, "training")

    def _training_part(self, method: Method) -> Part:
        settings = self._common() | {"method": asdict(method)}
        if method.trains:
            settings |= {key: self._resolved[key] for key in ("domain", "tune")}
        if method.starts_from == "fresh":
            settings["lora"] = self.recipe.lora
        if method.needs_recording:
            settings["recording"] = self.importance or self._record_part().settings
        if method.penalty:
            settings["protecting"] = {key: self._resolved["alora"][key] for key in _PROTECTING}
        return Part(self.folder / method.name, settings, "training")

    def _evaluation_part(self, name: str, trained: str) -> Part:
        settings = {"data": self._data_part().settings, "evaluation": self._resolved["evaluation"], "trained": trained}
        return Part(self.folder / name, settings, "result")

    # ---- the work ----

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's tokenizer."""
        from alora_trainer.stages import load_tokenizer

        return load_tokenizer(self.recipe)

    def prepare_data(self) -> dict[str, Any]:
        """Write the held-out general text and the domain's items, both as evaluation and training read them.

        Returns:
            general: path by subset; train, test: paths of the domain's items; report: what was left out, and why. All paths
            are relative to the output folder.
        """
        from alora_trainer.data.domain import prepare_domain
        from alora_trainer.data.general import write_held_out

        part = self._data_part()
        part.begin(overwrite=self.overwrite)
        finished = part.finished()
        if finished is not None:
            return finished
        recipe = self.recipe
        general = write_held_out(
            recipe.general.test, part.folder / "general", max_bytes=recipe.general.test_bytes, base=recipe.base
        )
        domain = prepare_domain(recipe.domain, base=recipe.base, folder=part.folder / "domain", seed=recipe.seed)
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

    def record(self) -> dict[str, Any]:
        """Stage A: train on general text and record importance into ``record/map``.

        Returns:
            seconds, peak_bytes, loss and steps of the training.
        """
        from alora_trainer.data.domain import collator
        from alora_trainer.provenance import recording_facts
        from alora_trainer.stages import load_base, release_memory, train, with_fresh_adapter
        from alora_trainer.trainer import ALoRATrainer

        part = self._record_part()
        part.begin(overwrite=self.overwrite)
        finished = part.finished()
        if finished is not None:
            return finished
        recipe = self.recipe
        data = self._general_text(part.folder)
        trainer = ALoRATrainer(
            with_fresh_adapter(load_base(recipe), recipe),
            recipe.training_arguments("record", part.folder / "checkpoints"),
            train_dataset=data,
            data_collator=collator(self.tokenizer),
            alora=recipe.alora,
        )
        cost = train(trainer)
        if trainer.importance is None:
            raise RuntimeError("the recording ended without an importance map")
        facts = recording_facts(recipe, cost, trainer.args.device)
        trainer.importance.with_info(**facts).save_pretrained(part.folder / "map")
        part.finish(cost)
        del trainer
        release_memory()
        return cost

    def _general_text(self, folder: Path) -> Any:
        """Blocks of tokens to record on: packed from the recipe's sources, streamed, or sampled from the base model."""
        from alora_trainer.data.general import SELF, pack_general_text
        from alora_trainer.data.self_text import sample_text
        from alora_trainer.data.streaming import stream_general_text
        from alora_trainer.stages import load_base, release_memory

        general = self.recipe.general
        sources = general.train
        if sources == SELF:
            logger.info("stage A: sampling general text from the base model")
            base = load_base(self.recipe)
            base.to(self.recipe.training_arguments("record", folder).device)
            sources = {
                SELF: str(sample_text(base, self.tokenizer, general.self_text, folder / "self_text.jsonl").resolve())
            }
            del base
            release_memory()
        logger.info(f"stage A: recording on general text ({', '.join(sources)})")
        common: dict[str, Any] = {
            "block_length": general.block_length,
            "seed": self.recipe.seed,
            "base": self.recipe.base,
        }
        if general.streaming:
            return stream_general_text(sources, self.tokenizer, **common)
        return pack_general_text(sources, self.tokenizer, max_tokens=general.train_tokens, **common)

    def tune(self, method: Method) -> dict[str, Any]:
        """Stage B: train on the domain (after stage A, if the method needs it), saving ``METHOD/adapter``.

        Returns:
            train: seconds, peak_bytes, loss and steps of this training; record: those of stage A, if the method needs one
            and this run made it.
        """
        part = self._training_part(method)
        costs: dict[str, Any] = {"train": {"seconds": 0.0, "peak_bytes": 0}}
        part.begin(overwrite=self.overwrite)
        finished = part.finished()
        if finished is not None:
            return finished
        if method.needs_recording and self.importance is None:
            costs["record"] = self.record()
        if method.trains:
            logger.info(f"{method.name}: {method.description}")
            costs["train"] = self._train_on_domain(method, part.folder)
        part.finish(costs)
        return costs

    def _train_on_domain(self, method: Method, folder: Path) -> dict[str, Any]:
        from alora_trainer.data.domain import collator, tokenize_domain
        from alora_trainer.data.tasks import get_task
        from alora_trainer.importance.reading import check_reference
        from alora_trainer.provenance import domain_facts
        from alora_trainer.publishing import save_beside_model
        from alora_trainer.stages import load_base, release_memory, train, with_fresh_adapter, with_saved_adapter
        from alora_trainer.trainer import ALoRATrainer

        recipe = self.recipe
        files = self.prepare_data()
        data = tokenize_domain(
            get_task(recipe.domain.task),
            self.folder / files["train"],
            self.tokenizer,
            max_length=recipe.domain.max_length,
            loss_on=recipe.domain.loss_on,
        )
        base = load_base(recipe)
        if method.needs_recording:
            map_folder = self._map_folder()
            check_reference(map_folder)
            model = with_saved_adapter(base, map_folder, trainable=True)
            importance = self._load_map(map_folder) if method.penalty else None
        else:
            model, importance = with_fresh_adapter(base, recipe), None
        trainer = ALoRATrainer(
            model,
            recipe.training_arguments("tune", folder / "checkpoints"),
            train_dataset=data,
            data_collator=collator(self.tokenizer),
            importance=importance,
            alora=replace(recipe.alora, record=None) if method.penalty else None,
        )
        cost = train(trainer)
        model.save_pretrained(str(folder / "adapter"))
        if importance is not None:
            save_beside_model(trainer, folder / "adapter", data=domain_facts(recipe))
        del trainer, model, base, importance
        release_memory()
        return cost

    def _map_folder(self) -> Path:
        if self.importance is None:
            return self.folder / "record" / "map"
        from alora_trainer.hub.download import fetch

        return fetch(self.importance)[0]

    def _load_map(self, folder: Path) -> ImportanceMap:
        from alora_trainer.importance import ImportanceMap

        return ImportanceMap.from_pretrained(folder)

    def evaluate(self, name: str, trained: str, adapter: Path | None) -> dict[str, Any]:
        """General ability and domain accuracy of the base model with `adapter` on it (or without any).

        Args:
            name: the folder for the result.
            trained: a digest of what the adapter depends on.

        Returns:
            general and tasks, as `evaluation.runner.evaluate_model` gives them.
        """
        from alora_trainer.data.tasks import get_task
        from alora_trainer.evaluation.runner import evaluate_model
        from alora_trainer.stages import load_base, release_memory, with_saved_adapter

        part = self._evaluation_part(name, trained)
        finished = part.finished(overwrite=self.overwrite)
        if finished is not None:
            return finished
        files = self.prepare_data()
        recipe = self.recipe
        logger.info(f"{name}: evaluating")
        model: Any = load_base(recipe)
        if adapter is not None:
            model = with_saved_adapter(model, adapter, trainable=False)
        model.to(recipe.training_arguments("tune", self.folder).device)
        task = get_task(recipe.domain.task)
        part.folder.mkdir(parents=True, exist_ok=True)
        outcome = evaluate_model(
            model,
            self.tokenizer,
            general={subset: self.folder / path for subset, path in files["general"].items()},
            tasks={task.name: self.folder / files["test"]},
            task_specs=[task],
            config=recipe.evaluation,
            seed=recipe.seed,
            samples_path=part.folder / "samples.jsonl",
        )
        part.finish(outcome)
        del model
        release_memory()
        return outcome

    def method(self, method: Method) -> dict[str, Any]:
        """Train and evaluate one method; its entry of results.json."""
        costs = self.tune(method)
        adapter = self.folder / method.name / "adapter" if method.trains else None
        return self.evaluate(method.name, self._training_part(method).digest, adapter) | costs

    def trained_before(self, method: Method) -> dict[str, Any]:
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
        return self.evaluate(method.name, stored["settings_digest"], adapter) | costs

    def finished_before(self, exclude: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Entries of further methods that are finished in this folder with the same recipe."""
        entries = {}
        for method in METHODS.values():
            training = self._training_part(method)
            evaluation = self._evaluation_part(method.name, training.digest)
            trained, scored = training.finished(overwrite=True), evaluation.finished(overwrite=True)
            if method.name not in exclude and trained is not None and scored is not None:
                entries[method.name] = scored | trained
        return entries


def _pinned(importance: str) -> str:
    """A map's folder, or its Hub id with the commit that it is fetched at now, so that a run keeps to one map."""
    from alora_trainer.hub.download import fetch

    _, origin = fetch(importance)
    return importance if origin is None or Path(importance).is_dir() else str(origin)
