"""The README does not lie: its example runs as it stands, and what it says of commands and methods is so."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from alora_trainer.cli.command_line import make_parser
from alora_trainer.experiment.methods import METHODS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(marker: str) -> str:
    """The code block after ``<!-- marker -->``."""
    found = re.findall(rf"<!-- {marker} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert len(found) == 1
    return str(found[0])


def test_the_example_runs_as_it_stands(tmp_path: Path) -> None:
    from alora_trainer.experiment import demo

    if not (demo.MODEL / "model.safetensors").is_file():
        pytest.skip("the demo's base model is not in this tree")
    code = block("example")
    assert 18 <= len([line for line in code.splitlines() if line.strip()]) <= 24
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "cache")}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    assert (tmp_path / "map" / "importance_config.json").is_file()


@pytest.mark.parametrize("marker", ["demo command", "test command"])
def test_the_two_commands_are_one_line_each_and_name_what_exists(marker: str) -> None:
    (line,) = block(marker).splitlines()
    for file in re.findall(r"-c (\S+)", line):
        assert (ROOT / file).is_file()


def test_the_gate_runs_the_two_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "readme 'demo command'" in script and "readme 'test command'" in script


def test_every_command_line_in_it_parses() -> None:
    lines = [line for line in README.splitlines() if line.startswith("alora ")]
    assert len(lines) >= 5
    for line in lines:
        arguments = shlex.split(line, comments=True)[1:]
        known, _ = make_parser().parse_known_args(arguments)
        assert known.command == arguments[0]


def test_every_method_is_in_it_as_it_describes_itself() -> None:
    for method in METHODS.values():
        assert f"| `{method.name}` | {method.description} |" in README
