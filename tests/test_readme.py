"""The README does not lie: its two commands are the gate's, its figures are the committed ones. tests/docs runs its example."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from alora_trainer.cli.commands import COMMANDS
from alora_trainer.experiment.methods import METHODS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(marker: str) -> str:
    """The code block after ``<!-- marker -->``."""
    found = re.findall(rf"<!-- {marker} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert len(found) == 1
    return str(found[0])


@pytest.mark.parametrize("marker", ["demo command", "test command"])
def test_the_two_commands_are_one_line_each_and_name_what_exists(marker: str) -> None:
    (line,) = block(marker).splitlines()
    for file in re.findall(r"-c (\S+)", line):
        assert (ROOT / file).is_file()


def test_the_gate_runs_the_two_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "readme 'demo command'" in script and "readme 'test command'" in script


def test_every_command_is_on_the_page_of_commands() -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    said = {line.split()[1] for line in page.splitlines() if line.startswith("alora ")} | set(
        re.findall(r"\(alora (\w+)", page)
    )
    assert {command.__name__.rpartition(".")[2].replace("evaluate", "eval") for command in COMMANDS} == said


def test_every_method_is_on_the_page_of_settings_as_it_describes_itself() -> None:
    page = (ROOT / "docs" / "recipe_settings.md").read_text(encoding="utf-8")
    for method in METHODS.values():
        assert f"| `{method.name}` | {method.description} |" in page
    assert f"[{len(METHODS)} methods and controls](docs/methods/README.md)" in README


def test_its_figures_are_those_of_the_comparison() -> None:
    """README's rows have the method's name and two cells of docs/methods/comparison.md, whose figures are results/'s."""
    page = (ROOT / "docs" / "methods" / "comparison.md").read_text(encoding="utf-8")
    page = page[page.index("# Curvature beside its rivals") :]
    rows = {
        cells[1]: cells
        for cells in ([cell.strip() for cell in line.split("|")] for line in page.splitlines())
        if len(cells) > 7
    }
    names = {"plain LoRA": "lora", "the paper's ALoRA": "alora"}
    found = [line for line in README.splitlines() if re.match(r"\|.* \| 0\.\d+ ± ", line)]
    assert len(found) == 5
    for line in found:
        label, rise, learned = (cell.strip() for cell in line.strip("|").split("|"))
        name = names.get(label) or re.findall(r"`(\w+)`", label)[0]
        assert (rise, learned.removesuffix(" %")) == (rows[name][3], rows[name][6]), line
