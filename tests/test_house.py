"""The house: which room may import which, that no circle is hidden anywhere, and that rooms stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "alora_trainer"

# Each room, and the rooms below it that it may import.
_GROUND = {"errors"}
_BASICS = {"basics", *_GROUND}
_WEIGHTS = {"weights", *_BASICS}
_IMPORTANCE = {"importance", *_WEIGHTS}
_DATA = {"data", *_BASICS}
BELOW = {
    "__main__": {"cli"},
    "errors": set(),
    "basics": _GROUND,
    "weights": _BASICS,
    "importance": _WEIGHTS,
    "penalty": _IMPORTANCE,
    "artefact": _IMPORTANCE,
    "trainer": {"penalty", "artefact", *_IMPORTANCE},
    "data": _BASICS,
    "evaluation": {*_DATA, *_WEIGHTS},
    "experiment": {"trainer", "penalty", "artefact", "evaluation", *_IMPORTANCE, *_DATA},
    "cli": {"experiment", "trainer", "penalty", "artefact", "evaluation", *_IMPORTANCE, *_DATA},
}
# The same within experiment.
WITHIN_EXPERIMENT = {
    "methods": set(),
    "recipe": {"methods"},
    "report": {"methods", "recipe"},
    "run": {"methods", "recipe", "report"},
    "board": {"methods", "recipe", "report", "run"},
    "fit": {"methods", "recipe", "report", "run"},
    "demo": set(),  # it only has data
}
# Packages that take long to import, or that not everybody has installed: these, and nothing else, are imported where they
# are used. Of our own modules only the command line imports late, so that `alora --help` is quick.
HEAVY = {
    "bitsandbytes": "an extra, for quantised bases",
    "submitit": "an extra, for clusters",
    "deepspeed": "an extra, for its own pieces alone",
    "evaluate": "needed by the learning curve alone",
    "lm_eval": "seconds to import",
    "matplotlib": "an extra, for pictures",
    "scipy": "an extra, for the report",
    "torch.distributed.tensor": "for sharded parameters alone",
    "triton": "an extra, for GPUs",
    "trl": "an extra, and seconds to import",
}
# A worker of a sweep sets its environment before anything reads it.
LATE_ALL_THE_SAME = {("alora_trainer.experiment.run.scheduling.worker", "torch")}
LONGEST_FILE, LONGEST_FUNCTION = 400, 70


@dataclass(frozen=True)
class Import:
    """One import of one module: by which, of what, in which line; whether inside a function, or for type checkers alone."""

    by: str
    of: str
    line: int
    late: bool
    typing: bool


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


@cache
def sources() -> dict[str, ast.Module]:
    return {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(name: str, tree: ast.Module) -> Iterator[Import]:
    """All imports of a module, inside functions and under TYPE_CHECKING too; of names in a package, the package's modules."""

    def walk(node: ast.AST, late: bool, typing: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(name, alias.name, child.lineno, late, typing) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0 and child.module is not None, f"{name}:{child.lineno} imports relatively"
                for alias in child.names:
                    inside = f"{child.module}.{alias.name}"
                    of = inside if inside in sources() else child.module
                    yield Import(name, of, child.lineno, late, typing)
            within = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            checked = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
            yield from walk(child, late or within, typing or checked)

    return walk(tree, False, False)


@cache
def all_imports() -> tuple[Import, ...]:
    return tuple(found for name, tree in sources().items() for found in imports_of(name, tree))


def own_imports() -> list[Import]:
    return [found for found in all_imports() if found.of.split(".")[0] == "alora_trainer"]


def room(module: str, level: int = 1) -> str:
    parts = module.split(".")
    return parts[level] if len(parts) > level else ""


def test_the_package_is_at_most_twelve_things() -> None:
    things = {path.name for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()} - {"__pycache__"}
    things -= {"__main__.py"}  # a door, for python -m
    assert things == {f"{name}.py" if name == "errors" else name for name in BELOW if name != "__main__"} | {
        "__init__.py"
    }
    assert len(things) <= 12


def test_every_import_goes_downwards() -> None:
    wrong = [
        found
        for found in own_imports()
        if room(found.by) and room(found.of) != room(found.by) and room(found.of) not in BELOW[room(found.by)]
    ]
    assert wrong == []


def test_nobody_but_the_command_line_imports_experiment() -> None:
    wrong = [
        found
        for found in own_imports()
        if room(found.of) in ("experiment", "cli") and room(found.by) not in ("experiment", "cli", "__main__")
    ]
    assert wrong == []


def test_imports_within_experiment_go_downwards() -> None:
    wrong = []
    for found in own_imports():
        by, of = room(found.by, 2), room(found.of, 2)
        if room(found.by) == room(found.of) == "experiment" and by and by != of and of not in WITHIN_EXPERIMENT[by]:
            wrong.append(found)
    assert wrong == []


def test_there_is_no_circle() -> None:
    """By taking away, again and again, the modules that import nothing that is left."""
    edges = {name: set() for name in sources()}
    for found in own_imports():
        if found.of != found.by:
            edges[found.by].add(found.of)
    while free := {name for name, needs in edges.items() if not needs}:
        edges = {name: needs - free for name, needs in edges.items() if name not in free}
    assert sorted(edges) == []


def test_only_what_is_heavy_is_imported_late() -> None:
    late = [found for found in all_imports() if found.late and room(found.by) != "cli"]
    late = [found for found in late if (found.by, found.of) not in LATE_ALL_THE_SAME]
    assert [found for found in late if not _is_heavy(found.of) and not _of_something_heavy(found)] == []


def _is_heavy(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in HEAVY)


def _of_something_heavy(found: Import) -> bool:
    """Whether a module of ours that is imported late imports something heavy at its top."""
    return found.of in _standing_for_something_heavy()


@cache
def _standing_for_something_heavy() -> set[str]:
    at_top = [found for found in all_imports() if not found.late and not found.typing]
    return {found.by for found in at_top if _is_heavy(found.of)}


def test_who_imports_what_stands_for_something_heavy_does_so_late() -> None:
    wrong = [
        found
        for found in own_imports()
        if _of_something_heavy(found)
        and found.by not in _standing_for_something_heavy()
        and not (found.late or found.typing)
    ]
    assert wrong == []


@pytest.mark.parametrize("statement", ["import alora_trainer", "import alora_trainer.cli.command_line"])
def test_importing_the_package_or_its_command_loads_nothing_large(statement: str) -> None:
    """What `alora --help` takes is the import of the command."""
    code = f"import sys\n{statement}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"torch", "transformers", "peft", "datasets", "numpy", *HEAVY} & set(done.stdout.split())


def test_what_looks_for_the_data_of_a_fit_needs_no_pytorch() -> None:
    """So that a mistyped name is told at once; pyarrow, which reads their files, is what it takes."""
    modules = "alora_trainer.data.detection.finding, alora_trainer.experiment.recipe.model_place"
    code = f"import sys\nimport {modules}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"torch", "transformers", "peft", "datasets", *HEAVY} & set(done.stdout.split())


def test_no_file_and_no_function_is_too_long() -> None:
    long = []
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > LONGEST_FILE:
            long.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > LONGEST_FUNCTION:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length} lines")
    assert long == []


def test_no_two_public_classes_have_one_name() -> None:
    names = Counter(
        node.name
        for tree in sources().values()
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_every_module_and_public_function_has_a_docstring() -> None:
    missing = []
    for name, tree in sources().items():
        if not (ast.get_docstring(tree) or "").strip(". "):
            missing.append(name)
        for node in tree.body:
            public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            if public and not ast.get_docstring(node) and not _is_door(node):
                missing.append(f"{name}.{node.name}")
    assert missing == []


def _is_door(node: ast.stmt) -> bool:
    """`add` and `execute` of a command, which the package `cli.commands` describes once for all of them."""
    return isinstance(node, ast.FunctionDef) and node.name in ("add", "execute", "draw", "numbers")
