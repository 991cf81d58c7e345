"""From a YAML file to a checked `Recipe`: every key known, every value of its type, nothing computed yet."""

from __future__ import annotations

import dataclasses
import logging
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from peft import LoraConfig
from transformers import TrainingArguments

from alora_trainer.basics.keys import check_keys
from alora_trainer.data.domain import DomainConfig
from alora_trainer.data.general import GeneralConfig
from alora_trainer.data.probe import check_probe
from alora_trainer.data.tasks import get_task
from alora_trainer.errors import ALoRAError
from alora_trainer.evaluation.runner import EvaluationConfig
from alora_trainer.experiment.methods import Method, get_method
from alora_trainer.experiment.recipe.contents import CONFIG_FILES
from alora_trainer.experiment.recipe.map_section import RecordedMapConfig
from alora_trainer.experiment.recipe.method_options import read_method_options
from alora_trainer.experiment.recipe.model_section import ModelConfig
from alora_trainer.experiment.recipe.older_spellings import in_todays_spelling
from alora_trainer.experiment.recipe.recipe import SECTIONS, SET_BY_RUN, Recipe
from alora_trainer.experiment.recipe.schema.check import check_sections
from alora_trainer.experiment.recipe.settings import (
    absolute_path,
    as_mapping,
    check_no_secrets,
    coerce,
    coerce_all,
    environment_variables,
    interpolate,
)
from alora_trainer.experiment.recipe.written import read_written
from alora_trainer.importance.kinds.kronecker import KRONECKER
from alora_trainer.importance.recording.curvature_config import CurvatureConfig
from alora_trainer.importance.recording.fisher import FisherConfig
from alora_trainer.importance.recording.measured import MEASURED, RECORDED
from alora_trainer.trainer.config import ALoRAConfig
from alora_trainer.weights.start import StartFrom

logger = logging.getLogger(__name__)


def load_recipe(
    path: str | Path, overrides: Mapping[str, Any] | None = None, *, variables: Mapping[str, str] | None = None
) -> Recipe:
    """Read and check a recipe.

    Args:
        path: the YAML file; relative paths in it start from its folder.
        overrides: by dotted name, over what the file says: plain values ("lora.r": 16), or texts, which are read as YAML
            ("tune.learning_rate": "1e-4").
        variables: for ``${NAME}``, over the process's environment.

    Raises:
        ALoRAError: the file is missing or no YAML, a key is unknown (the message names the nearest one), a value cannot be
            used, or a variable is not set.
    """
    path = Path(path)
    written = read_written(path, overrides)
    check_sections(written)
    return build_recipe(written, base=path.parent, default_name=path.stem, variables=variables)


def build_recipe(
    written: Mapping[str, Any],
    *,
    base: str | Path = ".",
    default_name: str = "recipe",
    variables: Mapping[str, str] | None = None,
) -> Recipe:
    """A checked `Recipe` from plain data; see `load_recipe` for arguments and errors."""
    check_no_secrets(written, "")
    given = interpolate(dict(written), environment_variables(variables), known=variables or {})
    check_sections(given)
    sections = in_todays_spelling({name: as_mapping(given.get(name), name) for name in SECTIONS})
    domains = _domains(given, sections, DomainConfig)
    folder = Path(base).resolve()

    def training(name: str, values: dict[str, Any]) -> dict[str, Any]:
        return _located(_checked(TrainingArguments, values, name, SET_BY_RUN), CONFIG_FILES, folder)

    evaluation = _located(_checked(EvaluationConfig, sections["evaluation"], "evaluation"), ("task_folder",), folder)
    if evaluation.get("task_folder"):
        _warn_of_code(evaluation["task_folder"])
    methods = _methods(given.get("methods", list(_DEFAULT_METHODS)))
    recipe = Recipe(
        name=coerce(given.get("name", default_name), str, "name"),
        seed=coerce(given.get("seed", 0), int, "seed"),
        output_dir=coerce(given.get("output_dir"), str | None, "output_dir"),
        methods=methods,
        model=_section(ModelConfig, sections, "model"),
        lora=_checked(LoraConfig, sections["lora"], "lora"),
        fresh_lora=_checked(LoraConfig, sections["fresh_lora"], "fresh_lora"),
        general=_section(GeneralConfig, sections, "general"),
        domain=domains[0],
        domains=domains if "domains" in given else (),
        record=training("record", sections["record"]),
        tune=training("tune", sections["tune"]),
        alora=_section(
            ALoRAConfig, {"alora": {"record": "projected"} | _with_basis(sections["alora"], folder)}, "alora"
        ),
        map=_section(RecordedMapConfig, sections, "map"),
        fisher=_section(FisherConfig, sections, "fisher"),
        curvature=_section(CurvatureConfig, sections, "curvature"),
        importance=_importance(given.get("importance"), methods),
        method_options=read_method_options(
            sections["method_options"],
            {
                "lora": lambda values, name: _checked(LoraConfig, values, name),
                "tune": lambda values, name: training(name, values),
                "alora": lambda values, name: _with_basis(_checked(ALoRAConfig, values, name), folder),
                "record": lambda values, name: training(name, values),
            },
        ),
        evaluation=EvaluationConfig(**evaluation),
        base=Path(base),
        # What is no text by now is a setting like any other, and others read the seed as a number.
        written={**written, "seed": coerce(given["seed"], int, "seed")} if "seed" in given else dict(written),
    )
    _check_together(recipe)
    return recipe


def _check_together(recipe: Recipe) -> None:
    """Refuse settings that do not go with each other, and what other libraries refuse."""
    if not 0 <= recipe.seed < 2**32:
        raise ALoRAError(f"seed={recipe.seed} must lie between 0 and 2**32 - 1")
    if recipe.alora.record is None and recipe.needs_recording:
        raise ALoRAError("alora.record is null, and a method needs the recording: set it to 'projected'")
    if recipe.fresh_lora and recipe.alora.start_from is StartFrom.RECORDED:
        raise ALoRAError("fresh_lora is for a new adapter: set alora.start to merged or bare, or leave fresh_lora out")
    if recipe.evaluation.scales and recipe.domains:
        raise ALoRAError(
            "evaluation.scales is for one domain: leave it out, or run the domains as recipes of their own"
        )
    if recipe.alora.budget is not None:
        check_probe(recipe.general)
    for domain in recipe.domains or (recipe.domain,):
        get_task(domain.task)
    recipe.lora_config()
    recipe.lora_config(fresh=True)
    for section in ("record", "tune"):
        recipe.training_arguments(section, recipe.base, anywhere=True)
    for name in recipe.method_options:
        special = recipe.for_method(get_method(name))
        special.lora_config()
        special.training_arguments("tune", recipe.base, anywhere=True)
        if get_method(name).records_alone:
            recipe.for_own_recording(get_method(name)).training_arguments("record", recipe.base, anywhere=True)


def _located(values: dict[str, Any], keys: Sequence[str], folder: Path) -> dict[str, Any]:
    """A section with the files and folders that these keys may name, relative to the recipe's, as absolute paths."""
    paths = {key: values[key] for key in keys if isinstance(values.get(key), str) and values[key].strip()}
    return values | {key: absolute_path(path, folder) for key, path in paths.items() if not path.startswith("{")}


def _with_basis(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The section `alora` with the folder that its `basis` names, relative to the recipe's; any other one is a Hub id."""
    located = _located(values, ("basis",), folder)
    return located if Path(str(located.get("basis"))).is_dir() else values


@cache
def _warn_of_code(folder: str) -> None:
    """Once a process; before anything of it can run."""
    logger.warning(
        f"evaluation.task_folder: the tasks in {folder!r} may run code of their own (!function), as with lm_eval "
        "--include_path: go on only if you trust whoever wrote them"
    )


def _importance(value: Any, methods: Sequence[Method]) -> str:
    """What `alora record` makes: as it is said, else what the first of the methods that are held by a map is held by."""
    if value is None:
        held = next((method for method in methods if method.takes_map), None)
        return _DEFAULT_IMPORTANCE if held is None else held.measured.name if held.measured else RECORDED
    name, known = coerce(value, str, "importance"), [RECORDED, *MEASURED]
    if name not in known:
        raise ALoRAError(f"importance={name!r} is unknown: use one of {', '.join(known)}")
    return str(name)


def _methods(value: Any) -> tuple[Method, ...]:
    names = coerce(value, list[str], "methods")
    if not isinstance(names, list) or not names:
        raise ALoRAError(f"methods={value!r} must be a list of methods, such as {', '.join(_DEFAULT_METHODS)}")
    methods = tuple(get_method(str(name)) for name in names)
    if len({method.name for method in methods}) < len(methods):
        raise ALoRAError(f"methods={', '.join(map(str, names))} names one of them twice: leave it out")
    return methods


def _domains(given: Mapping[str, Any], sections: Mapping[str, dict[str, Any]], kind: type) -> tuple[Any, ...]:
    """The recipe's `domain` alone, or its `domains`: names of built-in tasks, or sections as `domain` is one."""
    if "domains" not in given:
        return (_section(kind, sections, "domain"),)
    listed = given["domains"]
    if isinstance(listed, str):
        listed = [word.strip() for word in listed.split(",")]
    if not isinstance(listed, list) or len(listed) < 2 or given.get("domain") is not None:
        raise ALoRAError("domains must be a list of two or more, in the place of domain: domains: [sciq, piqa]")
    made = []
    for number, entry in enumerate(listed, start=1):
        name = f"domains.{number}"
        values = {"task": entry} if isinstance(entry, str) else as_mapping(entry, name)
        made.append(_section(kind, {name: values}, name))
    return tuple(made)


def _checked(
    kind: type, values: dict[str, Any], name: str, reserved: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """A section's values, after checking its keys and types against the fields of the dataclass `kind`."""
    for key, instead in (reserved or {}).items():
        if key in values:
            raise ALoRAError(f"{name}.{key} cannot be set: {instead} sets it")
    known = {item.name for item in dataclasses.fields(kind) if item.init}
    check_keys(values, known - set(reserved or {}), name)
    return coerce_all(values, _types(kind), name)


@cache
def _types(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields: slow to find for the Trainer's hundred."""
    return typing.get_type_hints(kind)


def _section(kind: type, sections: Mapping[str, dict[str, Any]], name: str) -> Any:
    """A section as an instance of the dataclass `kind`."""
    values = _checked(kind, sections[name], name)
    for item in dataclasses.fields(kind):
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and item.init and values.get(item.name) is None:
            raise ALoRAError(f"the recipe has no {name}.{item.name}: add it")
    return kind(**values)


# As the small board decided (docs/board.md): what is trained and made where a recipe does not say.
_DEFAULT_METHODS = ("base", "lora", "kfac_natural")
_DEFAULT_IMPORTANCE = KRONECKER
