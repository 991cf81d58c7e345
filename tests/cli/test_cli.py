"""The command line: quick to help, one line for every mistake, and the same work as the Python functions."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alora_trainer.cli.command_line import main
from alora_trainer.cli.overrides import parse_overrides, parted
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.report.results import RunResults
from tests.tiny_recipe import make_collecting_cheap, write_all


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    make_collecting_cheap()
    return write_all(tmp_path_factory.mktemp("cli"))


@pytest.fixture(autouse=True)
def _undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `main` sets for its own process is no business of the other tests."""
    monkeypatch.setattr("alora_trainer.cli.command_line.configure_output", lambda: None)


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`fails(*arguments)`: the one line of the error that the command ends with."""

    def run(*arguments: str | Path) -> str:
        assert main([str(argument) for argument in arguments]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("alora: error: ")]
        assert len(lines) == 1
        return lines[0]

    return run


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, alora_trainer.cli as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'lm_eval', 'numpy', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    seconds = []
    for _ in range(3):
        start = _of_children()
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        seconds.append(_of_children() - start)  # of the processor, which may have other things to do
        assert result.returncode == 0, result.stderr
    assert "demo" in result.stdout and "record" in result.stdout
    assert min(seconds) < 1


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_overrides() -> None:
    given = ["--tune.learning_rate", "1e-4", "--alora.lam=0.3", "--methods", "base,lora", "--alora.xi", "-1"]
    assert parse_overrides(given) == {
        "tune.learning_rate": "1e-4",
        "alora.lam": "0.3",
        "methods": "base,lora",
        "alora.xi": "-1",
    }
    assert parse_overrides(["tune.learning_rate=1e-4", "--seed", "1", "general.train={words: a=b.jsonl}"]) == {
        "tune.learning_rate": "1e-4",
        "seed": "1",
        "general.train": "{words: a=b.jsonl}",
    }
    for wrong, message in (
        (["x"], "unexpected argument x"),
        (["output-dir=x"], "unexpected argument output-dir=x"),
        (["output_di=x"], "did you mean --output_dir"),
        (["-x"], "unexpected argument -x"),
        (["--seed"], "--seed has no value"),
        (["--seed", "--methods", "base"], "--seed has no value"),
        (["--output-dir", "x"], "did you mean --output_dir"),
        (["--overwrit"], "did you mean --overwrite"),
    ):
        with pytest.raises(ALoRAError, match=message):
            parse_overrides(wrong, ["output_dir", "overwrite", "method"])
    assert parse_overrides(["--methods", "base"], ["method"]) == {
        "methods": "base"
    }  # a setting, and no misspelt option


def test_overrides_among_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seed=2").touch()
    given = ["a.jsonl", "tune.max_steps=3", "seed=1", "seed=2", "other=1"]
    assert parted(given) == (["a.jsonl", "seed=2", "other=1"], {"tune.max_steps": "3", "seed": "1"})


def test_the_nearest_path_is_named(tiny: Path, fails: Callable[..., str], tmp_path: Path) -> None:
    folder = tiny.parent
    assert f"did you mean {folder / 'recipe.yaml'}?" in fails("check", folder / "recipe.yml")
    assert f"did you mean {folder / 'recipe.yaml'}?" in fails("board", folder / "recipe.yml")
    assert "is a recipe, and no board: alora run" in fails("board", tiny)
    assert f"did you mean {folder / 'words_train.jsonl'}?" in fails("plan", tiny, "--general.train", "word_train.jsonl")
    (tmp_path / "adapter").mkdir()
    assert f"did you mean {tmp_path / 'adapter'}?" in fails("scale", tmp_path / "adaptr", "--alpha", "1")
    assert f"did you mean {tmp_path / 'adapter'}?" in fails("push", tmp_path / "adaptr", "tiny-org/x")
    assert f"did you mean {tmp_path / 'adapter'}?" in fails("inspect", tmp_path / "adaptr")
    (tmp_path / "run" / "record" / "map").mkdir(parents=True)
    (tmp_path / "run" / "record" / "map" / "importance_config.json").touch()
    assert f"there is one in {tmp_path / 'run' / 'record' / 'map'}" in fails("inspect", tmp_path / "run")
    assert "did you mean lam?" in fails("sweep", tiny, "--over", "lamb=0.1")


def ends(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """The status that argparse ends the process with, and what it printed to both streams."""
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    printed = capsys.readouterr()
    return int(end.value.code or 0), printed.out, printed.err


def test_a_command_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "check" in capsys.readouterr().out  # the help
    for arguments, message in (
        (("rum", "x"), "alora: error: unknown command rum: did you mean run? (see `alora --help`)"),
        (("zzzzz",), "alora: error: unknown command zzzzz: use one of demo, "),
        (("run",), "alora run: error: the following arguments are required: RECIPE (see `alora run --help`)"),
        (("run", "x", "--list-settings", "tun"), "there is no setting tun: known are name"),
    ):
        status, _, err = ends(capsys, *arguments)
        assert status == 2 and message in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("command", [(), ("check",), ("run",), ("tune",)])
def test_lists_need_no_recipe(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = ends(capsys, *command, "--list-methods")
    assert status == 0 and [line.split()[0] for line in out.splitlines()][:2] == ["base", "lora"]
    status, out, _ = ends(capsys, *command, "--list-settings")
    assert status == 0 and "evaluation" in out
    status, out, _ = ends(capsys, *command, "--list-settings", "alora.lam")
    assert status == 0 and out.startswith("alora.lam (number or text or null")


@pytest.mark.parametrize(
    "options", [("--list-methods",), ("--list-settings", "tune"), ("--help",), ("tune", "--list-methods")]
)
def test_a_reader_that_went_away_is_no_mistake(options: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "alora_trainer", *options]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.returncode in (0, 1) and not done.stderr  # argparse itself passes over it where help is long


def test_the_help_says_what_the_commands_do(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words, others in (
        (("tune", "--help"), "any that trains", "lora, lora_ab or alora"),
        (("demo", "--help"), "default: demo-run", "all methods"),
        (("sweep", "--help"), "runs/NAME-sweep", "runs/NAME)"),
        (("run", "--help"), "or runs/NAME)", "fit-NAME"),
    ):
        said = " ".join(ends(capsys, *arguments)[1].split())
        assert words in said and others not in said


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_completion_in_bash(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    made = capsys.readouterr().out

    def completed(*words: str) -> list[str]:
        given = " ".join(f"'{word}'" for word in words)
        asked = f'{made}\nCOMP_WORDS=({given}); COMP_CWORD={len(words) - 1}; _alora; echo "${{COMPREPLY[@]}}"'
        done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert completed("alora", "re") == ["record", "report"]
    assert completed("alora", "tune", "--imp") == ["--importance"]
    assert completed("alora", "run", "--o") == ["--output_dir", "--overwrite"]
    assert completed("alora", "run", "reci") == []  # files, which the shell knows
    assert main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.endswith(made)


def test_the_package_runs_as_a_module(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "alora_trainer", "check", str(tmp_path / "none.yaml")],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert done.returncode == 2 and "none.yaml cannot be read" in done.stderr


def test_a_users_mistake_is_one_line_and_status_2(tiny: Path, fails: Callable[..., str], tmp_path: Path) -> None:
    out = ("--output_dir", tmp_path / "out")
    assert fails("run", tiny, *out, "--sed", "1") == "alora: error: unknown key sed: did you mean seed?"
    assert "did you mean tune.learning_rate?" in fails("run", tiny, *out, "--tune.learnin_rate", "1")
    assert "none.yaml cannot be read" in fails("run", tmp_path / "none.yaml", *out)
    assert "there is no model folder ./none" in fails("run", tiny, *out, "--model.path", "./none")
    assert "none.jsonl" in fails("run", tiny, *out, "--domain.train", "none.jsonl")
    assert "did you mean 'alora'?" in fails("tune", tiny, *out, "--method", "alor")
    assert "did you mean --method?" in fails("tune", tiny, *out, "--method", "lora", "--metho", "alora")
    assert "no importance map at" in fails("tune", tiny, *out, "--method", "alora", "--importance", "./none")
    assert "there is no adapter folder" in fails("eval", tiny, *out, "--adapter", tmp_path / "none")


def test_bad_files_are_one_line_and_status_2(tiny: Path, fails: Callable[..., str], tmp_path: Path) -> None:
    empty, torn, broken = tmp_path / "empty.jsonl", tmp_path / "torn.jsonl", tmp_path / "model"
    empty.write_text("")
    torn.write_text('{"text": "a"}\n{"text": \n')
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    assert "empty.jsonl" in fails("record", tiny, "--output_dir", tmp_path / "1", "--general.train", empty)
    assert "line 2" in fails("record", tiny, "--output_dir", tmp_path / "2", "--general.train", torn)
    assert "model.path" in fails("record", tiny, "--output_dir", tmp_path / "3", "--model.path", broken)
    message = fails("record", tiny, "--output_dir", tmp_path / "4", "--lora.target_modules", "[nothing]")
    assert "lora does not fit the model" in message
    assert "Dora" in fails("record", tiny, "--output_dir", tmp_path / "5", "--lora.use_dora", "true")


def test_the_steps_one_by_one(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--output_dir", str(tmp_path), "--tune.max_steps", "2", "--evaluation.limit", "2"]
    assert main(["record", str(tiny), *out]) == 0
    assert capsys.readouterr().out == f"importance map: {tmp_path / 'record' / 'map'}\n"
    assert main(["tune", str(tiny), "--method", "alora", *out]) == 0
    assert capsys.readouterr().out == f"adapter: {tmp_path / 'alora' / 'adapter'}\n"
    assert main(["eval", str(tiny), *out]) == 0
    assert main(["eval", str(tiny), "--method", "alora", *out]) == 0
    printed = capsys.readouterr().out
    assert "| base " in printed and "| alora " in printed
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["methods"]) == ["base", "alora"]
    assert results["recipe"]["tune"]["max_steps"] == 2
    assert results["methods"]["alora"]["train"]["seconds"] > 0


def test_an_interrupt_says_how_to_go_on(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("alora_trainer.experiment.run.whole_recipe.run_recipe", interrupt)
    assert main(["run", str(tiny), "--output_dir", str(tmp_path)]) == 130
    assert "the same command goes on from here" in capsys.readouterr().err


def test_several_processes_are_refused(tiny: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "a whole recipe runs in one process: for several, use `alora record`" in fails("run", tiny)
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setattr("alora_trainer.experiment.run.whole_recipe.launched", lambda: 2)
    assert "method replay trains in one process" in fails("tune", tiny, "--method", "replay")


def test_a_fault_of_ours_keeps_its_traceback(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("alora_trainer.experiment.run.whole_recipe.run_recipe", fail)
    with pytest.raises(ZeroDivisionError):
        main(["run", str(tiny), "--output_dir", str(tmp_path)])


def test_without_output_dir_a_run_goes_to_runs(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("alora_trainer.experiment.run.whole_recipe.run_recipe", lambda recipe, **_: RunResults({}, {}))
    assert main(["run", str(tiny)]) == 0
    assert f"results: {Path('runs') / 'tiny' / 'results.json'}" in capsys.readouterr().out


def test_the_installed_command_as_a_person_calls_it(tiny: Path, tmp_path: Path) -> None:
    """A process of its own: only our own lines and the table."""
    command = [sys.executable, "-m", "alora_trainer.cli", "run", str(tiny), "--output_dir", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    tiny_steps = ["--methods", "lora_ab", "--tune.max_steps", "1", "--evaluation.limit", "1"]
    good = subprocess.run([*command, *tiny_steps], capture_output=True, text=True, check=False, env=environment)
    assert good.returncode == 0, good.stderr
    assert good.stdout.startswith("| method") and "| lora_ab " in good.stdout
    assert "arning" not in good.stderr, good.stderr
