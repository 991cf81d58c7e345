"""What `alora fit` is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alora_trainer.basics.shares import check_rise
from alora_trainer.data.general import check_count
from alora_trainer.errors import ALoRAError
from alora_trainer.evaluation.kept_prompts import check_kept, is_prompt_file
from alora_trainer.experiment.methods import get_method
from alora_trainer.experiment.recipe.schema.check import check_settings
from alora_trainer.experiment.recipe.settings import absolute_path
from alora_trainer.experiment.report.gate import parse_kept

SEARCH = "search"  # in the place of a map's name
# Settings of a recipe that a fit has arguments for, and does not look for in the recipe.
_ARGUMENTS = {
    "methods": "--method (in Python method=)",
    "importance": "--importance (importance=)",
    "output_dir": "--output_dir (output_dir=)",
    "seed": "--seed (seed=)",
}


@dataclass(frozen=True)
class FitRequest:
    """What is asked for.

    Attributes:
        model: a folder or Hub id of the base model.
        data: files, folders, patterns or Hub data sets to learn.
        output_dir: the result's folder.
        test: of the same kinds, to measure what was learned on; empty holds a part of `data` out.
        general: text whose loss may rise by `max_general_rise` at most; empty samples it from the model itself.
        unseen: text of other kinds, on which the rise is measured and told apart, and not promised.
        max_general_rise: as a share of the base model's mean negative log-likelihood a token (`alora.budget`'s measure).
        importance: a map (folder or Hub id) to hold the training by, instead of measuring one; "search" looks for one on the
            Hub.
        after: the folder of an earlier fit, whose items are learned together with `data`, held by its map.
        method: what is trained; it is held by a map that is measured at the base model.
        prompt, completion: templates of the columns, where they are not to be found out.
        epochs: over the training items.
        max_steps: optimizer steps in their place.
        general_tokens: how many tokens of general text are used in all, in four parts.
        seed: of everything.
        probing: share of the training's steps that short trainings may take, to find the learning rate; 0 tries none.
        tried: further methods that they try.
        keep: task of lm-eval's, or a file of prompts with reference answers -> the least change of its score over the base
            model's (-0.01 or "-1pt"); or as the command line has it, "hellaswag=-1pt", one or several. A gate beside the
            promise.
        merged: write the base model with the adapter merged into it, too.
        overrides: settings of the recipe by dotted name: plain values, or texts as the command line has them.

    Raises:
        ALoRAError: a value is out of range, or the method cannot be held to a promise.
    """

    model: str
    data: tuple[str, ...]
    output_dir: Path
    test: tuple[str, ...] = ()
    general: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    max_general_rise: float = 0.01
    importance: str | None = None
    after: Path | None = None
    method: str = "kfac_natural"
    prompt: str | None = None
    completion: str | None = None
    epochs: float = 3.0
    max_steps: int | None = None
    general_tokens: int = 100_000
    seed: int = 0
    probing: float = 0.0
    tried: tuple[str, ...] = ()
    keep: Mapping[str, float] = field(default_factory=dict)
    merged: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", parse_kept(self.keep))
        check_rise(self.max_general_rise, "max_general_rise")
        if not self.data:
            raise ALoRAError("there is no data: name a file, a folder or a data set of the Hub")
        if (self.prompt is None) != (self.completion is None):
            raise ALoRAError("--prompt and --completion are given together: '{question}' and ' {answer}'")
        if not (_is_number(self.epochs) and self.epochs > 0):
            raise ALoRAError(f"epochs={self.epochs!r} must be a positive number")
        if not (_is_number(self.probing) and 0 <= self.probing <= 2):
            raise ALoRAError(
                f"probing={self.probing!r} must be a share of the training's steps, such as 0.25 (--probing 25%), or 0"
            )
        check_count(self.seed, "seed", least=0)
        check_settings(self.overrides)
        check_kept(self.keep)
        if "evaluation.task_folder" in self.overrides and any(map(is_prompt_file, self.keep)):
            raise ALoRAError(
                "--keep with a file of prompts has a task folder of its own: leave evaluation.task_folder out"
            )
        check_count(self.max_steps, "max_steps", optional=True)
        check_count(self.general_tokens, "general_tokens", least=4096)
        if self.tried and not self.probing:
            raise ALoRAError("--try names methods for short trainings: say by --probing which share they may take")
        if self.tried and self.importance is not None:
            raise ALoRAError("--try measures the map of every method: leave --importance out")
        for name in (self.method, *self.tried):
            method = get_method(name)
            if not (method.penalty and method.measured is not None and method.starts_from == "fresh"):
                raise ALoRAError(
                    f"method {name} cannot be held to a budget over the base: use one that is held by a map measured at the "
                    "base model, such as kfac, ekfac or covariance"
                )

    def check_overrides_of_fit(self) -> None:
        """Refuse settings that would stand in the recipe and not be followed, as `alora init` may write them.

        Raises:
            ALoRAError: with the argument that says it.
        """
        for name, argument in _ARGUMENTS.items():
            if name in self.overrides:
                raise ALoRAError(
                    f"{name} cannot be overridden in a fit, which trains one method and says itself where: give {argument}, or "
                    "write the recipe by `alora init` and run it by `alora run`"
                )

    @property
    def kept_tasks(self) -> list[str]:
        """The tasks of lm-eval's that are to be kept."""
        return [name for name in self.keep if not is_prompt_file(name)]

    @property
    def task_folder(self) -> str | None:
        """Where further tasks of lm-eval's are, from anywhere; None where that is not said."""
        written = self.overrides.get("evaluation.task_folder")
        return None if written is None else absolute_path(str(written), self.output_dir)

    @property
    def templates(self) -> tuple[str, str] | None:
        """Of prompt and completion, if they are given."""
        return None if self.prompt is None or self.completion is None else (self.prompt, self.completion)

    def of_the_data(self) -> dict[str, Any]:
        """What the files that are made of the data depend on, but for the content of what is read."""
        names = ("prompt", "completion", "general_tokens", "seed")
        return {name: getattr(self, name) for name in names}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
