"""What a sweep consists of: cells, each a few methods with one seed and one value of every setting that is swept over.

A method whose training does not depend on the swept settings is trained once a seed, in the cell that comes first. All cells
of a seed share one run folder, and with it the data and the recording, unless the swept settings are the recording's own.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alora_trainer.basics.keys import nearest
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.recipe.recipe import KEYS, Recipe
from alora_trainer.experiment.run.dependencies import result, shared
from alora_trainer.experiment.run.sweep.cell import Cell
from alora_trainer.experiment.run.training_recipe import check_one_domain
from alora_trainer.trainer.config import ALoRAConfig

_OUTSIDE_BRACKETS = re.compile(r",(?![^\[{]*[\]}])")


def parse_over(texts: Sequence[str]) -> dict[str, list[str]]:
    """What to sweep over, from ``lam=0.01,0.1`` or ``tune.learning_rate=1e-3,2e-3``.

    A name without a dot is a setting of `alora`.

    Raises:
        ALoRAError: no name, no value, a name given twice, or one that no section has.
    """
    over: dict[str, list[str]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        found = [value.strip() for value in _OUTSIDE_BRACKETS.split(values)]
        if not equals or not name or not all(found):
            raise ALoRAError(f"--over {text} is not understood: write it as lam=0.01,0.1,1")
        if "." not in name and name not in KEYS:
            known = [field.name for field in dataclasses.fields(ALoRAConfig)]
            if name not in known:
                near = nearest(name, known)
                meant = f"did you mean {near}? " if near else ""
                raise ALoRAError(f"--over {text}: alora has no setting {name}; {meant}write others with their section")
            name = f"alora.{name}"
        if name in ("seed", "methods", "name", "output_dir"):
            raise ALoRAError(f"--over {text}: {name} is not swept over (seeds have an option of their own)")
        if name in over or len(set(found)) < len(found):
            raise ALoRAError(f"--over {text} names something twice: give every value once")
        over[name] = found
    return over


def parse_seeds(text: str) -> list[int]:
    """Seeds, from ``0,1,2`` or ``0-4`` or both.

    Raises:
        ALoRAError: something else is written, or a seed twice.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None or (match[2] is not None and int(match[2]) < int(match[1])):
            raise ALoRAError(f"--seeds {text} is not understood: write it as 0,1,2 or 0-4")
        seeds += range(int(match[1]), int(match[2] or match[1]) + 1)
    if len(set(seeds)) < len(seeds):
        raise ALoRAError(f"--seeds {text} names a seed twice: give every one once")
    return seeds


@dataclass(frozen=True)
class Grid:
    """What a sweep of one recipe goes over.

    Attributes:
        recipe: the YAML file.
        overrides: set over the recipe in all cells.
        over: setting -> values, as `parse_over` gives them.
        seeds: of the recipe.
        only: the methods whose settings are varied; the others are trained with the recipe's own. None varies all.
        name: stands before the names of cells and folders, to tell several recipes apart.
    """

    recipe: Path
    overrides: Mapping[str, Any] = field(default_factory=dict)
    over: Mapping[str, Sequence[str]] = field(default_factory=dict)
    seeds: Sequence[int] = (0,)
    only: Sequence[str] | None = None
    name: str = ""


def cells_of(grid: Grid) -> list[Cell]:
    """The cells of a sweep, in an order in which they can be worked on.

    Raises:
        ALoRAError: the recipe or a value cannot be used; `only` names a method that the recipe does not have.
    """
    combinations = [dict(zip(grid.over, values, strict=True)) for values in itertools.product(*grid.over.values())]
    return [cell for seed in grid.seeds for cell in _cells_of_seed(grid, combinations, seed)]


def _cells_of_seed(grid: Grid, combinations: list[dict[str, str]], seed: int) -> list[Cell]:
    path, common = str(grid.recipe), {**grid.overrides, "seed": str(seed)}
    recipes = [load_recipe(path, {**common, **values}) for values in combinations]
    methods = [method.name for method in recipes[0].methods]
    if unknown := [name for name in grid.only or () if name not in methods]:
        raise ALoRAError(f"the method {unknown[0]} is to be varied, and is none of the recipe's: {', '.join(methods)}")
    # The recipe without the swept settings is among them, so that a single value is told from the recipe's own.
    depends = [_depends_on(recipe) for recipe in (load_recipe(path, common), *recipes)]
    folder = f"{grid.name}/seed-{seed}" if grid.name else f"seed-{seed}"
    name = folder.replace("/", ",")
    if any(one["shared"] != depends[0]["shared"] for one in depends):
        # The recording (or the data) itself is what is varied, so there is nothing to share.
        return [
            Cell(path, f"{name},{label}", f"{folder},{label}", common | values, tuple(methods), None)
            for values in combinations
            for label in [_label(values)]
        ]
    varying = [method for method in methods if any(one[method] != depends[0][method] for one in depends)]
    varying = [method for method in varying if grid.only is None or method in grid.only]
    fixed = tuple(method for method in methods if method not in varying)
    cells = [Cell(path, name, folder, common, fixed, None)]
    for values in combinations if varying else ():
        # The second cell alone makes what its methods share (an importance map of their own, say), the rest find it.
        after = tuple(cell.name for cell in cells[:2])
        label = _label(values)
        cells.append(Cell(path, f"{name},{label}", folder, common | values, tuple(varying), label, after))
    return cells


def _label(values: Mapping[str, str]) -> str:
    text = ",".join(f"{name.rpartition('.')[2]}={value}" for name, value in values.items())
    return re.sub(r"[^\w.,=+-]", "_", text)


def _depends_on(recipe: Recipe) -> dict[str, Any]:
    """The settings that each method depends on, and those that what all methods share depends on."""
    check_one_domain(recipe)
    found: dict[str, Any] = {method.name: result(recipe, method).settings for method in recipe.methods}
    return found | {"shared": shared(recipe)}
