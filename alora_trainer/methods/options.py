"""The recipe's section `method_options`: what is set for one method alone.

method_options:
  alora:  {alora: {lam: 0.3}}              # fields of ALoRAConfig, lora and tune, over the recipe's own
  osf:    {tune: {learning_rate: 1e-4}}
  si_full: {record: {learning_rate: 1e-4}} # of its own stage A; all others share the recipe's
  replay: {fraction: 0.05}                 # and the method's own settings
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from alora_trainer.errors import ALoRAError
from alora_trainer.methods.table import METHODS
from alora_trainer.settings import as_mapping, check_keys, coerce_all

SECTIONS = ("lora", "tune", "alora", "record")


@dataclass(frozen=True)
class GeneralTextOptions:
    """Of all methods that see general text while they train on the domain.

    Attributes:
        fraction: sequences of general text in a micro-batch, as a share of its domain sequences (at least one).
        weight: what the loss on general text is multiplied by.

    Raises:
        ALoRAError: a number is out of range.
    """

    fraction: float = 0.1
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ALoRAError(f"fraction={self.fraction!r} must lie between 0 and 1")
        if self.weight < 0:
            raise ALoRAError(f"weight={self.weight!r} must not be negative")


@dataclass(frozen=True)
class ReplayOptions(GeneralTextOptions):
    """Of `replay`."""


@dataclass(frozen=True)
class KLAnchorOptions(GeneralTextOptions):
    """Of `kl_anchor`.

    Attributes:
        temperature: of both distributions; the loss is multiplied by its square.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise ALoRAError(f"temperature={self.temperature!r} must be positive")


@dataclass(frozen=True)
class ILoRAOptions(GeneralTextOptions):
    """Of `i_lora`.

    Attributes:
        decay: of the moving average, at most; it starts lower.
        consistency: weight of the hidden states' distance from the average's.
        result: which adapter is saved, "average" or "trained".
    """

    decay: float = 0.99
    consistency: float = 1.0
    result: str = "average"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.decay < 1:
            raise ALoRAError(f"decay={self.decay!r} must be at least 0 and less than 1")
        if self.consistency < 0:
            raise ALoRAError(f"consistency={self.consistency!r} must not be negative")
        if self.result not in ("average", "trained"):
            raise ALoRAError(f"result={self.result!r} is unknown: use average or trained")


@dataclass(frozen=True)
class LoRAProOptions:
    """Of `lora_pro`.

    Attributes:
        solution: "sylvester" takes the factors' gradients nearest to LoRA's own, "zero" the simplest ones (X = 0).
        damping: added to the diagonals of ``B'B`` and ``AA'`` before they are inverted.
    """

    solution: str = "sylvester"
    damping: float = 1e-8

    def __post_init__(self) -> None:
        if self.solution not in ("sylvester", "zero"):
            raise ALoRAError(f"solution={self.solution!r} is unknown: use sylvester or zero")
        if self.damping <= 0:
            raise ALoRAError(f"damping={self.damping!r} must be positive")


@dataclass(frozen=True)
class CordaOptions:
    """Of `corda_kpm`.

    Attributes:
        samples: blocks of general text that the layers' inputs are gathered from.
    """

    samples: int = 256

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ALoRAError(f"samples={self.samples!r} must be at least 1")


@dataclass(frozen=True)
class OSFOptions:
    """Of `osf`.

    Attributes:
        effective_rank: share of each weight's singular directions that is frozen; the rest is trained.
    """

    effective_rank: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.effective_rank < 1:
            raise ALoRAError(f"effective_rank={self.effective_rank!r} must lie between 0 and 1")


_OWN: Mapping[str, type] = {
    "replay": ReplayOptions,
    "kl_anchor": KLAnchorOptions,
    "i_lora": ILoRAOptions,
    "lora_pro": LoRAProOptions,
    "corda_kpm": CordaOptions,
    "osf": OSFOptions,
}


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


def read_method_options(
    written: Mapping[str, Any], check: Mapping[str, typing.Callable[[dict[str, Any], str], dict[str, Any]]]
) -> dict[str, MethodOptions]:
    """The section `method_options`, checked.

    Args:
        written: by method name.
        check: for each of `SECTIONS`, a function of (values, name for messages) that checks and returns the values.

    Raises:
        ALoRAError: an unknown method or key, or a value that cannot be used.
    """
    check_keys(written, list(METHODS), "method_options")
    return {name: _one(name, as_mapping(values, f"method_options.{name}"), check) for name, values in written.items()}


def options_of(options: Mapping[str, MethodOptions], name: str) -> MethodOptions:
    """The options of the method called `name`, defaults where the recipe says nothing."""
    return options.get(name) or MethodOptions(own=_OWN[name]() if name in _OWN else None)


def _one(
    name: str, values: dict[str, Any], check: Mapping[str, typing.Callable[[dict[str, Any], str], dict[str, Any]]]
) -> MethodOptions:
    where = f"method_options.{name}"
    kind = _OWN.get(name)
    known = [item.name for item in dataclasses.fields(kind)] if kind is not None else []
    check_keys(values, [*known, *SECTIONS], where)
    if "record" in values and not METHODS[name].records_alone:
        raise ALoRAError(f"{where}.record: {name} has no recording of its own; set the recipe's section record")
    sections = {
        section: check[section](as_mapping(values[section], f"{where}.{section}"), f"{where}.{section}")
        for section in SECTIONS
        if section in values
    }
    own = None
    if kind is not None:
        given = {key: value for key, value in values.items() if key in known}
        try:
            own = kind(**coerce_all(given, typing.get_type_hints(kind), where))
        except ALoRAError as error:
            message = str(error)
            raise ALoRAError(message if message.startswith(where) else f"{where}.{message}") from error
    return MethodOptions(own, **sections)
