"""What is in a wheel and in a source distribution, by what pyproject.toml and MANIFEST.in say; building them takes longer."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "alora_trainer"

tomllib = pytest.importorskip("tomllib", reason="it came with Python 3.11")
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_file_of_the_package_is_in_the_wheel() -> None:
    patterns = SETTINGS["tool"]["setuptools"]["package-data"]["alora_trainer"]
    files = [
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    ]
    assert len(files) > 5
    # setuptools' ** stands for any number of folders, and fnmatch's * for what it does not.
    left_out = [name for name in files if not any(fnmatch.fnmatch(name, one.replace("**/", "*")) for one in patterns)]
    assert left_out == []


def test_the_recipes_are_in_the_wheel() -> None:
    given = {
        path.relative_to(ROOT).as_posix()
        for pattern in (one for group in SETTINGS["tool"]["setuptools"]["data-files"].values() for one in group)
        for path in ROOT.glob(pattern)
    }
    there = {path for path in (ROOT / "recipes").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert given == {path.relative_to(ROOT).as_posix() for path in there}


def test_the_source_distribution_has_what_the_tests_need() -> None:
    lines = (ROOT / "MANIFEST.in").read_text(encoding="utf-8").splitlines()
    named = [word for line in lines if line.startswith(("include", "graft")) for word in line.split()[1:]]
    assert [name for name in named if not (ROOT / name).exists()] == []
    used = {"tests", "docs", "recipes", "examples", "results", "benchmarks", "constraints.txt", "CITATION.cff", ".ci"}
    assert used <= set(named)


# Extras that constraints-min.txt leaves out: their lowest versions are not installed beside the tests.
NOT_IN_MINIMUM = {"docs", "deepspeed", "witness"}


def test_the_lowest_versions_are_those_that_are_declared() -> None:
    project = SETTINGS["project"]
    extras = [lines for name, lines in project["optional-dependencies"].items() if name not in NOT_IN_MINIMUM]
    lines = [line for group in (project["dependencies"], *extras) for line in group]
    named = [re.match(r"([\w-]+)(?:\[\w+\])?(?:>=([\d.]+))?", line) for line in lines]
    declared = {found[1]: found[2] for found in named if found is not None and found[1] != project["name"]}
    text = (ROOT / "constraints-min.txt").read_text(encoding="utf-8")
    lowest = dict(re.findall(r"^([\w-]+)==([\d.]+)$", text, re.MULTILINE))
    assert len(lowest) > 20 and set(declared) == set(lowest)
    for name, bound in declared.items():
        assert bound is not None, f"{name} has no lower bound"
        assert re.fullmatch(rf"{re.escape(bound)}(\.0)*", lowest[name]), (name, bound, lowest[name])


def test_the_package_and_its_citation_say_the_same() -> None:
    project = SETTINGS["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert project["authors"] == [{"name": one["name"]} for one in citation["authors"]]
    assert str(citation["version"]) == project["version"] and citation["license"] == project["license"]
    assert project["urls"]["Paper"] == citation["references"][0]["url"]


@pytest.mark.parametrize(
    "name", ["CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "CHANGELOG.md", "docs/agents.md"]
)
def test_relative_links_lead_somewhere(name: str) -> None:
    path = ROOT / name
    links = re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (path.parent / link).exists()] == []


def test_hooks_and_templates_can_be_read() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert {hook["id"] for repo in hooks for hook in repo["hooks"]} == {
        "ruff-check",
        "ruff-format",
        "mypy",
        "typos",
        "schema",
    }
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.md"):
        head = yaml.safe_load(path.read_text(encoding="utf-8").split("---")[1])
        assert set(head) == {"name", "about"} and all(head.values())
