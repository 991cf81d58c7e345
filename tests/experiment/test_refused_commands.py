"""A command that is refused leaves every file of a finished run byte for byte as it was, and makes none."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml

from alora_trainer.basics.folder_lock import folder_lock
from alora_trainer.basics.scores import GeneralScore, Score, TaskScore
from alora_trainer.cli.command_line import main
from alora_trainer.experiment import demo
from alora_trainer.experiment.demo import corpus
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.report.gather import read_runs
from alora_trainer.experiment.run.whole_recipe import run_recipe
from tests.tiny_recipe import SETTINGS, make_collecting_cheap, write_all

QUICK = SETTINGS | {"methods": ["base", "lora", "alora"]}
QUICK |= {section: SETTINGS[section] | {"max_steps": 1} for section in ("record", "tune")}
CHANGED = ("--tune.learning_rate", "1e-4")


def pretended(model: Any, tokenizer: Any, *, samples_path: Path, tasks: Any, **rest: Any) -> Score:
    return Score(GeneralScore(token_perplexity=10.0, subsets={}), {name: TaskScore(acc=0.5) for name in tasks})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The tiny recipe; what evaluates is replaced by two numbers."""
    make_collecting_cheap()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("alora_trainer.experiment.run.evaluate.evaluate_model", pretended)
        patch.setattr("alora_trainer.cli.command_line.configure_output", lambda: None)
        path = write_all(tmp_path_factory.mktemp("refused"))
        path.write_text(yaml.safe_dump(QUICK, sort_keys=False), encoding="utf-8")
        yield path


@pytest.fixture(scope="module")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    run_recipe(load_recipe(tiny), output_dir=folder)
    return folder


def options(folder: Path) -> list[str]:
    return ["--output_dir", str(folder)]


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its bytes, and every folder."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`refused(folder, *arguments)`: the one line that the command ends with, having changed nothing below `folder`."""

    def run(folder: Path, *arguments: str) -> str:
        before = snapshot(folder)
        assert main(list(arguments)) == 2
        assert snapshot(folder) == before
        (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("alora: error: ")]
        return line

    return run


def test_a_refused_run_tune_record_or_eval(finished: Path, tiny: Path, refused: Callable[..., str]) -> None:
    given, everywhere = options(finished), finished.parent
    for arguments, message in (
        (("run", str(tiny), *given, *CHANGED), "lora was made with other settings (tune.learning_rate was 0.01"),
        (("tune", str(tiny), "--method", "alora", *given, *CHANGED), "alora was made with other settings"),
        (("record", str(tiny), *given, "--record.learning_rate", "1e-4"), "record was made with other settings"),
        (("record", str(tiny), *given, "--lora.r", "3"), "record was made with other settings (lora.r was 2 and is 3)"),
        (("eval", str(tiny), *given, "--limit", "2"), "base was made with other settings (evaluation.limit"),
        (("eval", str(tiny), "--method", "lora", *given, "--seed", "4"), "data was made with other settings"),
        (("eval", str(tiny), "--method", "lora_ab", *given), "holds no finished training"),
        (("eval", str(tiny), "--method", "lora_ab", *given, "--max-general-rise", "1%"), "holds no finished training"),
        (("eval", str(tiny), "--adapter", "./none", *given, "--max-general-rise", "1%"), "there is no adapter folder"),
        (("tune", str(tiny), "--method", "alora", *given, "--importance", "./none"), "no importance map at"),
        (("tune", str(tiny), "--method", "lora", *given, "--alora.lam", "-1"), "lam"),
    ):
        assert message in refused(everywhere, *arguments), arguments


def test_the_last_method_alone_is_refused_before_the_first_is_begun(
    finished: Path, tiny: Path, refused: Callable[..., str], tmp_path: Path
) -> None:
    """`base` has no result here and would be evaluated first; of `alora` alone the settings are others."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "base" / "result.json").unlink()
    message = refused(tmp_path, "run", str(tiny), *options(folder), "--method_options.alora.alora.lam", "3")
    assert "alora was made with other settings (protecting.lam was 0.5 and is 3" in message


def test_a_refused_sweep(finished: Path, tiny: Path, refused: Callable[..., str], tmp_path: Path) -> None:
    """It was killed before it could remember its cell, in a folder where all methods were finished with other settings."""
    shutil.copytree(finished, tmp_path / "sweep" / "seed-3")
    given = [*options(tmp_path / "sweep"), "--seeds", "3"]
    assert "was made with other settings" in refused(tmp_path, "sweep", str(tiny), *given, *CHANGED)
    (tmp_path / "sweep" / "cells" / "seed-3").mkdir(parents=True)
    (tmp_path / "sweep" / "cells" / "seed-3" / "mine.txt").write_text("precious")
    assert "holds files that no run made" in refused(tmp_path, "sweep", str(tiny), *given)


def test_a_refused_continual_run(tiny: Path, refused: Callable[..., str], tmp_path: Path) -> None:
    settings = {key: value for key, value in QUICK.items() if key != "domain"}
    domain = SETTINGS["domain"]
    settings["domains"] = [domain | {"task": domain["task"] | {"name": name}} for name in ("one", "two")]
    recipe = tiny.parent / "several.yaml"
    recipe.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    given = [*options(tmp_path / "run"), "--methods", "base,lora"]
    assert main(["run", str(recipe), *given]) == 0
    shutil.rmtree(tmp_path / "run" / "base")  # it would be evaluated before the refusal
    assert "lora/1-one was made with other settings" in refused(tmp_path, "run", str(recipe), *given, *CHANGED)
    assert "0-start was made with other" in refused(tmp_path, "run", str(recipe), *given, "--evaluation.limit", "3")
    assert "for one domain" in refused(tmp_path, "run", str(recipe), *given, "--methods", "base,osf")


def test_a_folder_that_another_command_works_in(finished: Path, tiny: Path, refused: Callable[..., str]) -> None:
    given = options(finished)
    with folder_lock(finished):
        for command in (
            ("run", str(tiny), *given, "--overwrite"),
            ("record", str(tiny), *given),
            ("tune", str(tiny), "--method", "lora", *given),
            ("eval", str(tiny), *given),
        ):
            assert f"another command works in {finished} (process {os.getpid()} on " in refused(finished, *command)
    with folder_lock(finished.parent / "seed-0"):  # one of the folders of a sweep
        assert "another command works in" in refused(finished.parent, "sweep", str(tiny), *options(finished.parent))


def test_what_the_disk_refuses_at_the_beginning(
    finished: Path, tiny: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    inside = str(tmp_path / "file" / "x")
    for arguments in (
        ("run", str(tiny)),
        ("record", str(tiny)),
        ("eval", str(tiny)),
        ("sweep", str(tiny)),
        ("report", str(finished)),
    ):
        assert "File name too long" in refused(tmp_path, *arguments, "--output_dir", str(tmp_path / ("x" * 300)))
        assert "a part of this path is a file" in refused(tmp_path, *arguments, "--output_dir", inside)
        assert "is a file" in refused(tmp_path, *arguments, "--output_dir", str(tmp_path / "file"))
    assert "a part of this path is a file" in refused(tmp_path, "plan", str(tiny), "--output", inside)

    def read_only(path: Any, *_: Any) -> int:
        raise OSError(errno.EROFS, "read only", str(path))

    monkeypatch.setattr("alora_trainer.basics.folder_lock._take", read_only)
    message = refused(finished, "run", str(tiny), *options(finished))
    assert f"{finished / '.lock'}: Read-only file system: choose another --output_dir" in message


def test_a_disk_that_is_full_in_the_middle_of_a_method(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line that names the method and the folder; what was finished is kept, and nothing half-written is."""

    for error, words in (
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
            "could not be written whole",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), f"{tmp_path}: No space left on device: make room there"),
    ):
        monkeypatch.setattr("alora_trainer.experiment.run.tune.train", Mock(side_effect=error))
        assert main(["run", str(tiny), *options(tmp_path), "--methods", "base,lora"]) == 2
        (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("alora: error: ")]
        assert line.startswith("alora: error: method lora: ") and words in line
        assert list(json.loads((tmp_path / "results.json").read_text())["methods"]) == ["base"]
        assert not (tmp_path / ".lock").exists()


def test_a_report_of_what_was_stopped_says_so(finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Results of one method draw one dot, which looks like a result."""
    (tmp_path / "run").mkdir()
    results = json.loads((finished / "results.json").read_text())
    results["methods"] = {"base": results["methods"]["base"]}
    (tmp_path / "run" / "results.json").write_text(json.dumps(results))
    with caplog.at_level(logging.WARNING, "alora_trainer"):
        read_runs([finished])
        assert caplog.messages == []
        read_runs([tmp_path / "run"])
    assert "has no results of lora, alora, which its recipe names: run it to its end" in caplog.messages[0]
    assert "compares nothing" in caplog.messages[1]


def test_a_refused_command_makes_no_folder(tiny: Path, refused: Callable[..., str], tmp_path: Path) -> None:
    given = options(tmp_path / "deep" / "run")
    refused(tmp_path, "tune", str(tiny), "--method", "alora", *given, "--importance", "./none")
    refused(tmp_path, "eval", str(tiny), "--method", "lora", *given)
    refused(tmp_path, "eval", str(tiny), "--adapter", "./none", *given)
    refused(tmp_path, "run", str(tiny), *given, "--domain.train", "none.jsonl")
    refused(tmp_path, "run", str(tiny), *given, "--tune.learning_rate", "-1")
    refused(tmp_path, "report", str(tmp_path / "none"), "--output_dir", str(tmp_path / "report"))
    refused(tmp_path, "demo", "--output_dir", str(tmp_path / "demo"), "--tune.learnin_rate", "1")


def test_the_data_of_an_earlier_demo_stay(tmp_path: Path) -> None:
    """Another Python has other documentation, and what was trained on them depends on the data."""
    for name in (*corpus.SUBSETS, "elements"):
        for split in ("train", "test"):
            (tmp_path / f"{name}_{split}.jsonl").write_text("earlier")
    before = snapshot(tmp_path)
    assert demo.prepare(tmp_path) == demo.variables(tmp_path)
    assert snapshot(tmp_path) == before
