"""`--json`: of every command the same way, JSON alone on standard output, and the status as without it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alora_trainer.cli import command_line
from alora_trainer.cli.command_line import main, make_parser
from tests.tiny_map import make_map

# What these print is a file of its own.
WITHOUT = ("schema", "completion")


@pytest.fixture(autouse=True)
def _undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `main` sets for its own process is no business of the other tests."""
    monkeypatch.setattr(command_line, "configure_output", lambda: None)


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """`printed(*arguments)`: what the command prints as JSON."""

    def run(*arguments: str | Path, status: int = 0) -> Any:
        assert main([*map(str, arguments), "--json"]) == status
        return json.loads(capsys.readouterr().out)

    return run


def commands() -> dict[str, Any]:
    (subcommands,) = (action for action in make_parser()._actions if action.dest == "command")
    return dict(subcommands.choices)  # type: ignore[arg-type]


def test_every_command_has_it() -> None:
    lacking = [name for name, one in commands().items() if "--json" not in one.format_help()]
    assert sorted(lacking) == sorted(WITHOUT)


def test_a_map_as_facts(tmp_path: Path, printed: Callable[..., Any]) -> None:
    importance = make_map()
    importance.save_pretrained(tmp_path / "map", storage=["float32", "log8"])
    found = printed("inspect", tmp_path / "map")
    assert found["source"] == str(tmp_path / "map") and found["kind"] == "elementwise"
    assert list(found["formats"]) == ["float32", "log8"] and found["formats"]["float32"] > found["formats"]["log8"] > 0
    assert found["weights"].keys() == importance.keys() and found["at_base_weights"] is False
    name = next(iter(importance))
    assert found["weights"][name]["shape"] == list(importance[name].shape)
    assert found["weights"][name]["norm"] == pytest.approx(float(importance[name].norm()), rel=1e-5)
    assert (found["base_model"], found["tokens"], found["data"]["block_length"]) == ("tiny-org/tiny-llama", 12_800, 16)


def test_tasks_and_search(printed: Callable[..., Any]) -> None:
    found = printed("tasks")
    assert "alora_sciq" in found["tasks"] and (Path(found["folder"]) / "domain" / "alora_sciq.yaml").is_file()
    assert printed("search", "tiny-org/nobody-recorded-this") == []


def test_what_is_said_on_the_way_is_on_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def execute(*_: Any) -> command_line.Answer:
        print("looking at the data")
        return command_line.Answer("for people", {"value": float("nan"), "text": "\x1b[2J é"}, 3)

    monkeypatch.setattr("alora_trainer.cli.commands.tasks.execute", execute)
    assert main(["tasks"]) == 3
    assert capsys.readouterr().out == "looking at the data\nfor people\n"
    assert main(["tasks", "--json"]) == 3
    said = capsys.readouterr()
    assert json.loads(said.out) == {"value": None, "text": "\x1b[2J é"} and said.out.isascii()
    assert said.err == "looking at the data\n"


def test_a_mistake_leaves_standard_output_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "none"), "--json"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("alora: error: ")


@pytest.mark.parametrize(
    ("environment", "answers"),
    [
        ({}, True),
        ({"RANK": "3"}, True),  # what some machines set for themselves: one process, whatever it is called
        ({"WORLD_SIZE": "2", "RANK": "0"}, True),
        ({"WORLD_SIZE": "2", "RANK": "1"}, False),
    ],
)
def test_the_first_of_several_processes_answers_and_one_alone_always(
    environment: dict[str, str], answers: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["tasks", "--json"]) == 0
    assert bool(capsys.readouterr().out.strip()) == answers
