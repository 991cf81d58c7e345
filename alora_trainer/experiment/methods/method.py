"""`Method`: one row of a comparison, and what a method with a training or an adapter of its own says otherwise."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from alora_trainer.data.self_text import SelfTextConfig
from alora_trainer.errors import ALoRAError
from alora_trainer.importance.recording.measured import MEASURED, RECORDED, Measured
from alora_trainer.trainer.mixin import ALoRATrainer
from alora_trainer.weights.parameterization import Parameterization

Collate = Callable[[list[Any]], Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class Adapter:
    """A model with a method's adapter on it, and how to save that as something that PEFT loads onto the base model."""

    model: Any
    save: Callable[[Path], None]

    @classmethod
    def plain(cls, model: Any) -> Adapter:
        """One that PEFT saves as it is."""
        return cls(model, lambda folder: model.save_pretrained(str(folder)))


@dataclass(frozen=True)
class AdapterInputs:
    """What a method's adapter may be made from, beside the base model and the recipe's LoRA.

    Attributes:
        options: the method's own, an instance of its `options_class`, or None.
        folder: of the training, for an adapter that needs its beginning to be saved.
        general: rows of general text, for a method that `needs_general_text`.
        collate: makes a batch of rows.
        domain: the rows that the domain is trained with, for a method that `needs_domain_items`.
    """

    options: Any
    folder: Path
    general: Any = None
    collate: Collate | None = None
    domain: Any = None


@dataclass(frozen=True)
class Method:
    """One row of the table.

    A method that is more than settings is a subclass in a file of its own: `attach` for another adapter, `make_trainer` for
    another training, `options_class` for settings of its own (the recipe's ``method_options.NAME``).

    Attributes:
        name: as recipes, folders and results name it.
        description: one line for people.
        starts_from: "base" is the base model as it is, without any training; "fresh" trains a new adapter on the domain;
            "recorded" goes on with the adapter that recording on general text left behind.
        importance: hold what this says is important: "recorded" in stage A; a control made from it (see
            `importance.controls`); or what is measured at the base weights (a name in `MEASURED`, such as "fisher" or
            "kronecker"). None holds nothing.
        parameterization: whether an adapter is trained, or the model's own weights are.
        lora: fields of `peft.LoraConfig` that make the method.
        alora: fields of `ALoRAConfig` that make the method.

    Raises:
        ALoRAError: there is a penalty, and nothing says what is important.
    """

    # A dataclass of the settings that only this method has; None for none.
    options_class: ClassVar[type | None] = None
    # Whether its training on the domain (or its adapter) sees general text, too.
    needs_general_text: ClassVar[bool] = False
    # Whether its adapter is made from items of the domain.
    needs_domain_items: ClassVar[bool] = False
    # Whether it says itself which weights have an adapter, whatever the recipe's LoRA does.
    places_itself: ClassVar[bool] = False
    # Whether the general text that it sees is sampled from the base model for it (`own_text`), whatever the recipe's is.
    samples_text: ClassVar[bool] = False
    # Whether it reads the base weights' own numbers, which a quantised base does not have.
    needs_plain_base: ClassVar[bool] = False
    # Whether its training takes the model with its adapter switched off for the base model.
    compares_with_base: ClassVar[bool] = False
    # Whether it is LoRA in all but settings, so that it may learn several domains in a row.
    is_plain: ClassVar[bool] = True
    # Whether its training on the domain must be one process's.
    one_process: ClassVar[bool] = False
    # Whether what it leaves behind is a LoRA adapter, which has a meaning times a number.
    leaves_lora: ClassVar[bool] = True
    # Whether it multiplies the trained adapter by a number.
    scales_itself: ClassVar[bool] = False
    # Whether it makes another adapter of the trained one (`finish`).
    finishes: ClassVar[bool] = False

    name: str
    description: str
    starts_from: Literal["base", "fresh", "recorded"]
    importance: str | None = None
    parameterization: Parameterization = Parameterization.ADAPTER
    lora: Mapping[str, Any] = field(default_factory=dict)
    alora: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.importance is not None and not (self.needs_recording or self.measured):
            known = ", ".join(MEASURED)
            raise ALoRAError(
                f"method {self.name}: a penalty needs starts_from='recorded', or an importance that is measured: {known}"
            )

    # ---- what a method with code of its own says otherwise ----

    def configure(self, base: PreTrainedModel, config: LoraConfig) -> None:
        """Make the recipe's LoRA, for a new adapter on this base model, the method's own; most have fields for that (`lora`).

        Args:
            base: the base model; only its architecture counts.
            config: the recipe's LoRA with the method's own fields, to be changed.
        """

    def check_config(self, config: LoraConfig) -> None:
        """Refuse a LoRA that the method cannot do what it says with, before anything is loaded.

        Args:
            config: of a new adapter: the recipe's, with the method's own fields.

        Raises:
            ALoRAError: naming the setting.
        """

    def attach(self, base: PreTrainedModel, config: LoraConfig, inputs: AdapterInputs) -> Adapter:
        """Put the adapter that the domain is trained with on the base model, where nothing is recorded or held.

        Args:
            base: the base model, freshly loaded; it may be changed.
            config: the recipe's LoRA with the method's own fields; it may be changed.
            inputs: what else an adapter may need.
        """
        return Adapter.plain(get_peft_model(base, config))

    def make_trainer(self, *, options: Any, general: Any = None, **kwargs: Any) -> Any:
        """The trainer of the domain.

        Args:
            options: an `options_class`, or None.
            general: rows of general text, where `needs_general_text`.
            kwargs: `importance`, `alora` and `probe_dataset` (see `ALoRAMixin`), and model, args, train_dataset and the like
                for `transformers.Trainer`.
        """
        return ALoRATrainer(**kwargs)

    def finish(self, trained: Path, target: Path, options: Any, load_base: Callable[[], PreTrainedModel]) -> None:
        """Make what the method saves of the adapter that was trained, where it `finishes`.

        Args:
            trained: the folder of the trained adapter, of the bare base model.
            target: the folder to write; it is not there yet.
            options: an `options_class`, or None.
            load_base: loads the base model anew.
        """
        raise NotImplementedError

    def own_text(self, options: Any) -> tuple[SelfTextConfig, Sequence[str]]:
        """How its general text is sampled from the base model, and what that continues, where it `samples_text`."""
        raise NotImplementedError

    def general_rows(self, options: Any, batch_size: int) -> int:
        """Rows of general text beside a micro-batch of `batch_size` rows of the domain."""
        return 0

    def share_of_steps(self, options: Any, batch_size: int, domain: float, general: float) -> float:
        """What is left of a training's steps where general text beside the domain makes them fewer.

        Args:
            domain, general: tokens of a row.
        """
        return 1.0

    # ---- what follows ----

    def settings(self) -> dict[str, Any]:
        """What a training by this method depends on, as plain data; its description is not of it."""
        described = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        del described["description"]
        described["parameterization"] = self.parameterization.value
        return {key: dict(value) if isinstance(value, Mapping) else value for key, value in described.items()}

    def default_options(self) -> Any:
        """The settings that only this method has, as they are where a recipe says nothing; None for none."""
        return self.options_class() if self.options_class is not None else None

    @property
    def penalty(self) -> bool:
        """Whether anything holds the important weights."""
        return self.importance is not None

    @property
    def trains(self) -> bool:
        """Whether there is a training on the domain at all."""
        return self.starts_from != "base"

    @property
    def can_be_scaled(self) -> bool:
        """Whether the finished adapter times a number (`evaluation.scales`) has a meaning."""
        return self.trains and self.parameterization is Parameterization.ADAPTER and self.leaves_lora

    @property
    def needs_recording(self) -> bool:
        """Whether stage A, recording on general text, must come first."""
        return self.starts_from == "recorded"

    @property
    def records_alone(self) -> bool:
        """Whether its stage A is one of its own, of the whole model, and not the one that the others share."""
        return self.parameterization is Parameterization.FULL and self.needs_recording

    @property
    def measured(self) -> Measured | None:
        """What must be measured at the base weights first, if anything."""
        return MEASURED.get(self.importance or "")

    @property
    def takes_map(self) -> bool:
        """Whether a map of somebody else's can take the place of what it starts from, or is held by."""
        adapter = self.parameterization is Parameterization.ADAPTER
        return adapter and (self.needs_recording or self.measured is not None)

    @property
    def trains_in_several_processes(self) -> bool:
        """Whether `alora tune` may be launched in several processes for it."""
        adapter = self.parameterization is Parameterization.ADAPTER
        return adapter and not self.one_process and (self.measured is None or self.measured.is_curvature)

    @property
    def learns_several_domains(self) -> bool:
        """Whether it has a meaning over several domains in a row: plain LoRA, held by nothing or by what was recorded."""
        plain = self.is_plain and self.parameterization is Parameterization.ADAPTER
        return plain and (self.importance in (None, RECORDED) or self.measured is not None)


# Sections of a recipe that may be set for one method alone.
SECTIONS = ("lora", "tune", "alora", "record")


@dataclass(frozen=True)
class MethodOptions:
    """What a recipe sets for one method.

    Attributes:
        own: the method's own settings, an instance of its `options_class`; None for a method that has none.
        lora, tune, alora: over the recipe's sections of these names.
        record: over the recipe's, for a method that records on its own (of the whole model).
    """

    own: Any = None
    lora: dict[str, Any] = field(default_factory=dict)
    tune: dict[str, Any] = field(default_factory=dict)
    alora: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)

    def resolved(self) -> dict[str, Any]:
        """As plain data, with all of the method's own settings in it."""
        own = dataclasses.asdict(self.own) if self.own is not None else {}
        return own | {name: getattr(self, name) for name in SECTIONS if getattr(self, name)}
