"""`Method`: one row of a comparison."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from alora_trainer.errors import ALoRAError
from alora_trainer.weights.parameterization import Parameterization

HeldBy = Literal["recorded", "uniform", "even", "shuffled", "fisher", "fisher_batch"]
Technique = Literal["replay", "kl_anchor", "i_lora", "lora_pro"]
FISHER_KINDS = {"fisher": "sample", "fisher_batch": "batch"}


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        name: as recipes, folders and results name it.
        description: one line for people.
        starts_from: "base" is the base model as it is, without any training; "fresh" trains a new adapter on the domain;
            "recorded" goes on with the adapter that recording on general text left behind.
        importance: hold what this says is important: "recorded" in stage A; a control made from it (see
            `importance.controls`); or the Fisher information of the base weights ("fisher" by sample, "fisher_batch" as the
            official code of EWCLoRA computes it). None holds nothing.
        adapter: "lora", "mlp_lora" (on the MLP's layers alone), PEFT's "corda" or "osf"; or "full", none: the model's own
            parameters are tuned.
        technique: a training that differs from the usual one, see the package's text.
        lora: fields of `peft.LoraConfig` that make the method.
        alora: fields of `ALoRAConfig` that make the method.
    """

    name: str
    description: str
    starts_from: Literal["base", "fresh", "recorded"]
    importance: HeldBy | None = None
    adapter: Literal["lora", "mlp_lora", "corda", "osf", "full"] = "lora"
    technique: Technique | None = None
    lora: Mapping[str, Any] = field(default_factory=dict)
    alora: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.importance is not None and not (self.needs_recording or self.fisher_kind):
            raise ALoRAError(f"method {self.name}: a penalty needs starts_from='recorded', or Fisher information")

    @property
    def penalty(self) -> bool:
        """Whether anything holds the important weights."""
        return self.importance is not None

    @property
    def trains(self) -> bool:
        """Whether there is a training on the domain at all."""
        return self.starts_from != "base"

    @property
    def needs_recording(self) -> bool:
        """Whether stage A, recording on general text, must come first."""
        return self.starts_from == "recorded"

    @property
    def records_alone(self) -> bool:
        """Whether its stage A is one of its own, of the whole model, and not the one that the others share."""
        return self.is_full and self.needs_recording

    @property
    def fisher_kind(self) -> str | None:
        """Which Fisher information must be computed first ("sample" or "batch"), if any."""
        return FISHER_KINDS.get(self.importance or "")

    @property
    def is_full(self) -> bool:
        """Whether the model's own parameters are tuned."""
        return self.adapter == "full"

    @property
    def parameterization(self) -> Parameterization:
        """What its training moves: an adapter, or the model's own weights."""
        return Parameterization.FULL if self.is_full else Parameterization.ADAPTER

    @property
    def learns_several_domains(self) -> bool:
        """Whether it has a meaning over several domains in a row: plain LoRA, held by nothing or by what was recorded."""
        plain = self.technique is None and self.adapter in ("lora", "mlp_lora")
        return plain and (self.importance in (None, "recorded") or self.fisher_kind is not None)

    @property
    def trains_in_several_processes(self) -> bool:
        """Whether `alora tune` may be launched in several processes for it."""
        return self.technique is None and self.fisher_kind is None and self.parameterization is Parameterization.ADAPTER

    def settings(self) -> dict[str, Any]:
        """What a training by this method depends on, as plain data; its description is not of it."""
        described = dataclasses.asdict(self)
        del described["description"]
        return described

    @property
    def needs_general_text(self) -> bool:
        """Whether the training on the domain itself sees general text, too."""
        return self.technique in ("replay", "kl_anchor", "i_lora") or self.adapter == "corda"


@dataclass(frozen=True)
class MethodOptions:
    """What is set for one method.

    Attributes:
        own: the method's own settings, one of the classes above; None for a method that has none.
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


SECTIONS = ("lora", "tune", "alora", "record")


@dataclass(frozen=True)
class Adapter:
    """A model with a method's adapter on it, and how to save that as something that PEFT loads onto the base model."""

    model: Any
    save: Callable[[Path], None]

    @classmethod
    def plain(cls, model: Any) -> Adapter:
        """One that PEFT saves as it is."""
        return cls(model, lambda folder: model.save_pretrained(str(folder)))
