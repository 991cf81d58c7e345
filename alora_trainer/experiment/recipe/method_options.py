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
from typing import Any

from alora_trainer.basics.keys import check_keys
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods.method import SECTIONS, MethodOptions
from alora_trainer.experiment.methods.registry import METHODS
from alora_trainer.experiment.recipe.settings import as_mapping, coerce_all


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
    return options.get(name) or MethodOptions(own=METHODS.find(name).default_options())


def _one(
    name: str, values: dict[str, Any], check: Mapping[str, typing.Callable[[dict[str, Any], str], dict[str, Any]]]
) -> MethodOptions:
    where = f"method_options.{name}"
    kind = METHODS[name].options_class
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
