"""A sweep written down: which recipes, which settings over them, what is varied, which seeds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from alora_trainer.basics.keys import check_keys, meant_path
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.recipe.settings import as_mapping, parse_yaml
from alora_trainer.experiment.run.sweep.grid import Grid, parse_over, parse_seeds

KEYS = ("recipes", "settings", "over", "only", "seeds")


def read_sweep_file(path: Path, overrides: Mapping[str, str]) -> list[Grid] | None:
    """The grids of a sweep file, one a recipe; None if the file is a recipe and not a sweep.

    Its keys: ``recipes``, a list of files relative to it; ``settings``, over all recipes (dotted name: value); ``over``, what
    is varied (dotted name, or a setting of `alora`: list of values); ``only``, the methods whose settings are varied (all, if
    it is left out); ``seeds``, such as ``0,1,2``.

    Args:
        path: the YAML file.
        overrides: of the command line, over the file's `settings`.

    Raises:
        ALoRAError: the file cannot be read, or something in it is wrong.
    """
    try:
        content = as_mapping(parse_yaml(path.read_text(encoding="utf-8"), str(path)), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ALoRAError(f"{path} cannot be read: {reason}; {meant_path(path)}".rstrip("; ")) from error
    if "recipes" not in content:
        return None
    check_keys(content, KEYS)
    recipes, only = content["recipes"], content.get("only")
    for name, value in (("recipes", recipes), ("only", only)):
        if value is not None and not (isinstance(value, list) and value and all(isinstance(one, str) for one in value)):
            raise ALoRAError(f"{name}={value!r} in {path} must be a list of names")
    settings = {key: _text(value) for key, value in as_mapping(content.get("settings"), "settings").items()}
    over: dict[str, list[str]] = {}
    for key, values in as_mapping(content.get("over"), "over").items():
        if not isinstance(values, list) or not values:
            raise ALoRAError(f"over.{key}={values!r} in {path} must be a list of values")
        over |= parse_over([f"{key}={','.join(map(_text, values))}"])
    names = [Path(recipe).stem for recipe in recipes]
    if len(set(names)) < len(names):
        raise ALoRAError(f"{path} names two recipes that are called alike: rename one")
    return [
        Grid(
            path.parent / recipe,
            overrides=settings | dict(overrides),
            over=over,
            seeds=parse_seeds(str(content.get("seeds", 0))),
            only=only,
            name=name,
        )
        for recipe, name in zip(recipes, names, strict=True)
    ]


def _text(value: Any) -> str:
    """A value as an override writes it."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()
