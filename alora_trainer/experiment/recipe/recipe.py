"""A recipe: everything that one comparison needs, read from YAML, checked before anything is computed."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import TrainingArguments

from alora_trainer.basics.disclosure import FromEnvironment
from alora_trainer.data.domain import DomainConfig
from alora_trainer.data.general import SELF, GeneralConfig
from alora_trainer.data.probe import no_probe
from alora_trainer.errors import ALoRAError
from alora_trainer.evaluation.runner import EvaluationConfig
from alora_trainer.experiment.methods import Method
from alora_trainer.experiment.methods.method import MethodOptions
from alora_trainer.experiment.recipe.contents import Contents
from alora_trainer.experiment.recipe.map_section import RecordedMapConfig
from alora_trainer.experiment.recipe.method_options import options_of
from alora_trainer.experiment.recipe.model_place import model_place
from alora_trainer.experiment.recipe.model_section import ModelConfig, refuse_adapter
from alora_trainer.experiment.recipe.settings import absolute_path
from alora_trainer.importance.recording.curvature_config import CurvatureConfig
from alora_trainer.importance.recording.fisher import FisherConfig
from alora_trainer.importance.recording.measured import MEASURED, RECORDED, Measured
from alora_trainer.trainer.config import ALoRAConfig

SECTIONS = (
    "model",
    "lora",
    "fresh_lora",
    "general",
    "domain",
    "record",
    "tune",
    "alora",
    "map",
    "fisher",
    "curvature",
    "method_options",
    "evaluation",
)
KEYS = ("name", "seed", "output_dir", "methods", "importance", "domains", *SECTIONS)
# What to do where `model.path` is an adapter.
MERGE_FIRST = "set model.path to its base model, or merge the two first (merge_and_unload) and save the whole"
# Set by the run itself, so that one seed rules everything and every part lands in its own folder.
SET_BY_RUN = {
    "output_dir": "the run's --output_dir",
    "seed": "the recipe's own seed",
    "data_seed": "the recipe's own seed",
}


@dataclass(frozen=True)
class Recipe:
    """A checked recipe; `load_recipe` makes it.

    Attributes:
        name: names the default output folder.
        model: the base model.
        seed: of models, adapters, data order and evaluation.
        output_dir: default output folder, relative to the recipe; None is ``runs/NAME`` in the working directory.
        methods: what is compared, in order.
        lora: fields of `peft.LoraConfig`.
        fresh_lora: the same, over `lora`'s, for the new adapter of ``alora.start: merged`` and ``bare``.
        general: general text, to record on and to measure general ability with.
        domain: the task to tune on; with `domains`, the first of them.
        domains: several tasks to tune on in a row (see `continual`); empty for one.
        record, tune: fields of `transformers.TrainingArguments` for stage A and stage B.
        alora: recording and protecting.
        map: how the recorded importance is saved.
        fisher: how Fisher information is estimated, for the methods that need it.
        curvature: how curvature in a basis is, likewise.
        importance: what `alora record` makes: "recorded" in a training on general text, or a name in `MEASURED`, without one.
            Left out, it is what the first of the methods that take a map is held by, and "kronecker" where none does.
        method_options: what is set for one method alone, by its name.
        evaluation: how both kinds of text are scored.
        base: the recipe's folder, which its relative paths start from.
        written: the recipe as it was written, overrides included, variables and paths not resolved.
        contents: digests of what stands at its local paths, for what depends on them; None goes by the paths alone.
    """

    name: str
    model: ModelConfig
    lora: dict[str, Any]
    general: GeneralConfig
    domain: DomainConfig
    record: dict[str, Any]
    tune: dict[str, Any]
    alora: ALoRAConfig
    evaluation: EvaluationConfig
    fisher: FisherConfig
    curvature: CurvatureConfig = field(default_factory=CurvatureConfig)
    importance: str = RECORDED
    map: RecordedMapConfig = field(default_factory=RecordedMapConfig)
    domains: tuple[DomainConfig, ...] = ()
    method_options: dict[str, MethodOptions] = field(default_factory=dict)
    fresh_lora: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    output_dir: str | None = None
    methods: tuple[Method, ...] = ()
    base: Path = field(default_factory=Path)
    written: dict[str, Any] = field(default_factory=dict)
    contents: Contents | None = field(default=None, compare=False, repr=False)

    @property
    def needs_recording(self) -> bool:
        """Whether any of the methods starts from the adapter that is recorded on general text."""
        return any(method.needs_recording and not method.records_alone for method in self.methods)

    @property
    def measured(self) -> Measured | None:
        """What `alora record` measures; None where it records in a training."""
        return MEASURED.get(self.importance)

    @property
    def watches_general_text(self) -> bool:
        """Whether a protected training by this recipe, as it is `for_method`, looks at its loss on general text."""
        return self.alora.budget is not None or self.general.probe is not None

    def each_domain(self) -> list[Recipe]:
        """This recipe for each of its domains alone, in their order."""
        if not self.domains:
            return [self]
        return [dataclasses.replace(self, domain=domain, domains=()) for domain in self.domains]

    def options(self, method: Method) -> MethodOptions:
        """What is set for `method`."""
        return options_of(self.method_options, method.name)

    def for_method(self, method: Method) -> Recipe:
        """The recipe as `method` trains by it: with what makes the method, and what is set for it alone.

        Raises:
            ALoRAError: the two do not go together.
        """
        options = self.options(method)
        alora = dataclasses.replace(self.alora, **{**method.alora, **options.alora})
        return dataclasses.replace(
            self,
            lora={**self.lora, **method.lora, **options.lora},
            tune={**self.tune, **options.tune},
            alora=alora.watched() if method.penalty and no_probe(self.general) is None else alora,
        )

    def for_own_recording(self, method: Method) -> Recipe:
        """The recipe as the stage A of a method that records alone goes by it: with what is set for that alone."""
        return dataclasses.replace(self, record={**self.record, **self.options(method).record})

    def lora_config(self, *, fresh: bool = False) -> LoraConfig:
        """A new `peft.LoraConfig`; `fresh` for the new adapter of ``alora.start: merged`` and ``bare``.

        Raises:
            ALoRAError: PEFT refuses the values.
        """
        try:
            given = {"task_type": "CAUSAL_LM"} | self.lora | (self.fresh_lora if fresh else {})
            return LoraConfig(**_plain_texts(given))
        except (TypeError, ValueError) as error:
            raise ALoRAError(f"lora: {_first_line(error)}") from error

    def training_arguments(self, section: str, output_dir: str | Path, *, anywhere: bool = False) -> TrainingArguments:
        """The `transformers.TrainingArguments` of section "record" or "tune", writing to `output_dir`.

        Checkpoints are written four times a training and the last two kept, unless the recipe says otherwise.

        Args:
            section: "record" or "tune".
            output_dir: for checkpoints.
            anywhere: only to look at: a recipe for a GPU is not refused on a machine without one.

        Raises:
            ALoRAError: transformers refuses the values, or they make no step.
        """
        defaults = {
            "seed": self.seed,
            "report_to": "none",
            "save_strategy": "steps",
            "save_steps": 0.25,
            "save_total_limit": 2,
            "logging_steps": 10,
            "label_names": ["labels"],
            "dataloader_pin_memory": torch.cuda.is_available(),
            "disable_tqdm": not sys.stderr.isatty(),
        }
        given = defaults | getattr(self, section)
        if anywhere and not torch.cuda.is_available():
            given["use_cpu"] = True
        try:
            arguments = TrainingArguments(output_dir=str(output_dir), **_plain_texts(given))
        except Exception as error:  # whatever it is, it is of these settings
            raise ALoRAError(f"{section}: {_first_line(error)}") from error
        if arguments.max_steps == 0 or (arguments.max_steps < 0 and arguments.num_train_epochs <= 0):
            raise ALoRAError(
                f"{section}: max_steps={arguments.max_steps} and num_train_epochs={arguments.num_train_epochs:g} make no step: "
                "set one of them to a positive number"
            )
        return arguments

    def resolved(self) -> dict[str, Any]:
        """The whole recipe as plain data, with defaults of ours, variables replaced and paths absolute.

        Written to a file, it is a recipe that does the same from any folder. Each call has sections of its own.
        """
        return {key: dict(value) if isinstance(value, dict) else value for key, value in self._resolved.items()}

    @cached_property
    def _resolved(self) -> dict[str, Any]:
        # A run asks for it again and again, for everything that depends on it.
        general = dataclasses.asdict(self.general)
        domains = [dataclasses.asdict(domain) for domain in self.domains or (self.domain,)]
        base = self.base.resolve()
        read = [(general, ("train", "test", "probe")), *((domain, ("train", "test", "source")) for domain in domains)]
        for section, keys in read:
            for key in keys:
                if section[key] != SELF:
                    section[key] = _absolute(section[key], base)
        return {
            "name": self.name,
            "seed": self.seed,
            "methods": [method.name for method in self.methods],
            "importance": self.importance,
            "model": dataclasses.asdict(self.model) | {"path": self._model_path()},
            "lora": self.lora,
            "fresh_lora": self.fresh_lora,
            "general": general,
            **({"domains": domains} if self.domains else {"domain": domains[0]}),
            "record": self.record,
            "tune": self.tune,
            "alora": self.alora.resolved(),
            "map": dataclasses.asdict(self.map),
            "fisher": dataclasses.asdict(self.fisher),
            "curvature": dataclasses.asdict(self.curvature),
            "method_options": {name: options.resolved() for name, options in self.method_options.items()},
            "evaluation": dataclasses.asdict(self.evaluation),
        }

    def _model_path(self) -> str:
        source, path = self.model_source, self.model.path
        if source == path or not isinstance(path, FromEnvironment):
            return source
        anchored = absolute_path(path, self.base.resolve())
        return path.with_value(source, anchored.written if isinstance(anchored, FromEnvironment) else source)

    @property
    def model_source(self) -> str:
        """What `from_pretrained` is given: the model's absolute folder, or its Hub id.

        Raises:
            ALoRAError: `model.path` is a path, and there is no such folder, or an adapter in it.
        """
        path = model_place(self.model.path, self.base)
        if path is None:
            return self.model.path
        refuse_adapter(str(path), instead=MERGE_FIRST)
        return str(path.resolve())


def _absolute(source: Any, base: Path) -> Any:
    if isinstance(source, str):
        return source if source.startswith("hub:") else absolute_path(source, base)
    if isinstance(source, list):
        return [_absolute(item, base) for item in source]
    if isinstance(source, Mapping) and "hub" in source:
        return dict(source)
    if isinstance(source, Mapping) and "path" in source:
        return {**source, "path": _absolute(source["path"], base)}
    if isinstance(source, Mapping):
        return {name: _absolute(item, base) for name, item in source.items()}
    return source


def _plain_texts(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as other libraries want them, who keep and pickle what they are given."""
    return {key: str(value) if isinstance(value, FromEnvironment) else value for key, value in values.items()}


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
