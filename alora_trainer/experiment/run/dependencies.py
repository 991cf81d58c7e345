"""The parts of a run, and what each depends on: what is finished with the same settings is not done again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods import Method, get_method
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.run.stage import Part
from alora_trainer.trainer.config import PROTECTING
from alora_trainer.weights.parameterization import Parameterization

# The settings of `general` that stage A does not depend on.
_TEST = ("test", "test_bytes")
_PROBE = ("probe", "probe_tokens")
# The settings of `domain` that its files do not depend on.
_TOKENIZING = ("max_length", "loss_on", "too_long")
# The settings of `evaluation` that nothing depends on while they are not set.
_EXTRA = ("kl_tokens", "general_tasks", "task_folder")
# The settings of `evaluation` that are for the time of training.
_CURVE = ("curve_steps", "curve_blocks", "curve_items")


def watches_probe(recipe: Recipe) -> bool:
    """Whether a protected training by this recipe watches its loss on general text."""
    return recipe.alora.budget is not None or recipe.general.probe is not None


class RunParts:
    """Folders and settings of one recipe's parts.

    Args:
        recipe: what to do.
        folder: the run's output folder.
        importance: a map (folder or Hub id) instead of one that the run records.
        variant: a name for these settings, where several of one method share the folder.

    Raises:
        ALoRAError: there is no such map; the recipe's paths lead nowhere.
    """

    def __init__(self, recipe: Recipe, folder: Path, importance: str | None, variant: str | None = None) -> None:
        self.recipe = recipe
        self.folder = folder
        self.importance = importance
        self.variant = variant
        if recipe.domains:
            raise ALoRAError("a recipe with several domains is run as a whole: alora run RECIPE")
        if importance is not None:
            from alora_trainer.artefact.hub.download import pinned

            # A map that is not there is known before anything is done, and one run keeps to one map.
            self.importance = pinned(importance, storage=recipe.alora.storage)
        self._resolved = recipe.resolved()

    def place(self, method: Method) -> str:
        """The method's folder in the run's, and its name in results.json."""
        return method.name if self.variant is None else f"{method.name}@{self.variant}"

    def _common(self) -> dict[str, Any]:
        return {key: self._resolved[key] for key in ("model", "seed")}

    def _data_part(self) -> Part:
        general, domain = self._resolved["general"], self._resolved["domain"]
        settings = {
            "seed": self.recipe.seed,
            "general": {key: general[key] for key in _TEST},
            "domain": {key: value for key, value in domain.items() if key not in _TOKENIZING},
        }
        return Part(self.folder / "data", settings, "data")

    def _record_part(self, *, full: bool = False) -> Part:
        """Stage A, with LoRA or (`full`) of the whole model."""
        recipe = self.recipe.for_own_recording(get_method("si_full")) if full else self.recipe
        settings = self._common() | {
            "lora": recipe.lora,
            "general": self._training_text(),
            "record": recipe.record,
            "alora": {key: value for key, value in self._resolved["alora"].items() if key not in PROTECTING},
            "map": self._resolved["map"],
        }
        if full:
            return Part(self.folder / "record_full", settings | {"full": True}, "training")
        return Part(self.folder / "record", settings, "training")

    def _training_text(self) -> dict[str, Any]:
        return {key: value for key, value in self._resolved["general"].items() if key not in (*_TEST, *_PROBE)}

    def _fisher_part(self, method: Method) -> Part:
        assert method.importance is not None
        settings = self._common() | {
            "lora": self.recipe.lora,
            "general": self._training_text(),
            "fisher": self._resolved["fisher"],
            "kind": method.fisher_kind,
        }
        if method.parameterization is Parameterization.FULL:
            return Part(self.folder / f"{method.importance}_full", settings | {"full": True}, "training")
        return Part(self.folder / method.importance, settings, "training")

    def _training_part(self, method: Method) -> Part:
        recipe, own = self.recipe.for_method(method), self.recipe.options(method).own
        settings = self._common() | {"method": method.settings()}
        if method.trains:
            settings |= {"domain": self._resolved["domain"], "tune": recipe.tune}
            if recipe.evaluation.curve_steps is not None:
                settings["curve"] = {key: self._resolved["evaluation"][key] for key in _CURVE}
        if method.starts_from == "fresh":
            settings["lora"] = recipe.lora
        if method.needs_recording:
            given = None if (method.parameterization is Parameterization.FULL) else self.importance
            settings["recording"] = (
                given or self._record_part(full=(method.parameterization is Parameterization.FULL)).settings
            )
        if method.fisher_kind is not None:
            settings["fisher"] = self._fisher_part(method).settings
        if method.penalty:
            settings["protecting"] = recipe.alora.resolved_protecting()
            settings["fresh_lora"] = recipe.fresh_lora
            if watches_probe(recipe):
                settings["probe"] = {
                    key: self._resolved["general"][key] for key in (*_PROBE, "train", "train_tokens", "block_length")
                }
        if own is not None:
            settings["options"] = asdict(own)
        if method.needs_general_text:
            settings["general"] = self._training_text()
        return Part(self.folder / self.place(method), settings, "training")

    def _evaluation_part(self, name: str, trained: str) -> Part:
        scoring = {key: value for key, value in self._resolved["evaluation"].items() if key not in _CURVE}
        scoring = {key: value for key, value in scoring.items() if key not in _EXTRA or value}
        settings = {"data": self._data_part().settings, "evaluation": scoring, "trained": trained}
        return Part(self.folder / name, settings, "result")

    def settings_of(self, method: Method) -> dict[str, Any]:
        """Everything that a method's result depends on."""
        return self._evaluation_part(self.place(method), self._training_part(method).digest).settings

    def shared_settings(self) -> dict[str, Any]:
        """Everything that what the methods share depends on: the data, the recording, and the Fisher information."""
        shared = {"data": self._data_part().settings, "record": self._record_part().settings}
        return shared | {"fisher": self._resolved["fisher"]}

    def _map_folder(self) -> Path:
        if self.importance is None:
            return self.folder / "record" / "map"
        from alora_trainer.artefact.hub.download import fetch

        return fetch(self.importance, storage=self.recipe.alora.storage)[0]

    def data_settings(self) -> dict[str, Any]:
        """What the evaluated files depend on."""
        return self._data_part().settings

    def importance_settings(self, method: Method) -> Any:
        """What the method's importance depends on, and the adapter that it starts from; None if it has neither."""
        if method.fisher_kind is not None:
            return self._fisher_part(method).settings
        if method.needs_recording:
            return self.importance or self._record_part().settings
        return None

    def importance_folder(self, method: Method) -> Path:
        """The map that the method starts from or is held by."""
        if method.fisher_kind is not None:
            return self._fisher_part(method).folder / "map"
        return (
            self._record_part(full=True).folder / "map"
            if (method.parameterization is Parameterization.FULL)
            else self._map_folder()
        )
