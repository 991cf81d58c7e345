"""What stopped people in their first hour: a training that is interrupted, a map used again, a plan of the data."""

from __future__ import annotations

import json
import logging
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from alora_trainer.cli.command_line import main
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods import get_method
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.recipe.recipe import Recipe
from alora_trainer.experiment.run import train as training
from alora_trainer.experiment.run.whole_recipe import record_recipe, run_recipe, tune_recipe
from tests.tiny_recipe import make_collecting_cheap, write_all


@pytest.fixture(autouse=True)
def _undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `main` sets for its own process is no business of the other tests."""
    monkeypatch.setattr("alora_trainer.cli.command_line.configure_output", lambda: None)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    make_collecting_cheap()
    return write_all(tmp_path_factory.mktemp("first_hour"))


@pytest.fixture(scope="module")
def recorded(tiny: Path) -> Path:
    return record_recipe(load_recipe(tiny), output_dir=tiny.parent / "recorded")


@pytest.fixture
def recipe(tiny: Path) -> Callable[..., Recipe]:
    return lambda **overrides: load_recipe(tiny, overrides)


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


class Interrupts(TrainerCallback):
    """Somebody presses Ctrl-C while step 2 is made."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            signal.raise_signal(signal.SIGINT)


def test_an_interrupted_training_is_saved_and_goes_on_to_the_same_end(
    recipe: Callable[..., Recipe], recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a checkpoint of its own, which would come with the first quarter of the steps: here every one hundred."""
    one, alora = recipe(**{"tune.save_steps": "100"}), get_method("alora")
    undisturbed = adapter(tune_recipe(one, alora, output_dir=tmp_path / "whole", importance=recorded))
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        original = training.making_steps

        def interrupted(trainer: Any) -> Any:
            trainer.add_callback(Interrupts)
            return original(trainer)

        patch.setattr(training, "making_steps", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tune_recipe(one, alora, output_dir=tmp_path / "run", importance=recorded)
    assert signal.getsignal(signal.SIGINT) is handler
    saved = [path.name for path in (tmp_path / "run" / "alora" / "checkpoints").glob("checkpoint-*")]
    assert saved == ["checkpoint-2"]
    resumed = adapter(tune_recipe(one, alora, output_dir=tmp_path / "run", importance=recorded))
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)
    assert json.loads((tmp_path / "run" / "alora" / "training.json").read_text())["train"]["steps"] == 4


def test_a_line_from_time_to_time_without_a_terminal(
    recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("alora_trainer.basics.heartbeat.EVERY", 0.0)
    monkeypatch.setattr(
        "alora_trainer.experiment.run.train.Heartbeat",
        lambda *args, **settings: training_heartbeat(*args, **{**settings, "every": 0.0}),
    )
    with caplog.at_level(logging.INFO, "alora_trainer"):
        tune_recipe(recipe(), get_method("lora"), output_dir=tmp_path / "run")
    lines = [record.message for record in caplog.records if record.message.startswith("step ")]
    assert len(lines) == 4
    assert re.fullmatch(r"step 3 of 4, loss [\d.]+, .*\d+ s left", lines[2])


def training_heartbeat(*args: Any, **settings: Any) -> Any:
    from alora_trainer.basics.heartbeat import Heartbeat

    return Heartbeat(*args, **settings)


def test_a_map_takes_the_place_of_the_recording_and_of_its_text(
    tiny: Path, recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tiny.read_text(encoding="utf-8")
    without = tiny.parent / "without.yaml"
    without.write_text(text.replace("  train: words_train.jsonl\n", ""), encoding="utf-8")
    assert load_recipe(without).general.train is None
    with pytest.raises(
        ALoRAError, match=r"the recipe has no general\.train, and method lora_ab reads it: add it .*--importance"
    ):
        run_recipe(load_recipe(without), output_dir=tmp_path / "none")
    with pytest.raises(ALoRAError, match=r"no general\.train"):
        record_recipe(load_recipe(without), output_dir=tmp_path / "none")
    assert not (tmp_path / "none").exists()
    given = ["--importance", str(recorded), "--output_dir", str(tmp_path / "run")]
    assert main(["run", str(without), "--methods", "base,lora,alora", *given]) == 0
    table = capsys.readouterr().out
    assert "| alora " in table and not (tmp_path / "run" / "record").exists()
    # The same as with the general text at hand, which nothing then reads.
    assert (
        main(
            ["tune", str(tiny), "--method", "alora", "--importance", str(recorded), "--output_dir", str(tmp_path / "t")]
        )
        == 0
    )
    one, other = (adapter(tmp_path / name / "alora" / "adapter") for name in ("run", "t"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_map_that_no_method_takes_is_refused(tiny: Path, recorded: Path, tmp_path: Path) -> None:
    with pytest.raises(ALoRAError, match=r"none of the methods \(base, lora\) takes the importance map"):
        run_recipe(load_recipe(tiny, {"methods": "base,lora"}), output_dir=tmp_path / "run", importance=recorded)
    assert not (tmp_path / "run").exists()


def test_a_sweep_ends_with_a_table(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "sweep",
        str(tiny),
        "--methods",
        "base,lora",
        "--over",
        "tune.learning_rate=0.01,0.02",
        "--only",
        "lora",
    ]
    assert main([*arguments, "--seeds", "0,1", "--output_dir", str(tmp_path / "sweep")]) == 0
    out = capsys.readouterr().out
    rows = [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("|")]
    assert rows[0] == "method" and rows[2:] == ["base", "lora (learning_rate=0.01)", "lora (learning_rate=0.02)"]
    assert "sums" in out and "mean ± standard deviation over seeds" in out


def test_the_plan_opens_the_data(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("words_train.jsonl", "words_test.jsonl", "sums_train.jsonl", "sums_test.jsonl"):
        shutil.copy(tiny.parent / name, tmp_path / name)
    shutil.copytree(tiny.parent / "model", tmp_path / "model")
    shutil.copy(tiny, tmp_path / "recipe.yaml")
    recipe = str(tmp_path / "recipe.yaml")
    assert main(["plan", recipe]) == 0
    out = capsys.readouterr().out
    assert "training items" in out and "16" in out
    assert main(["plan", recipe, "--domain.train", "none.jsonl"]) == 2
    assert "no file none.jsonl" in capsys.readouterr().err
    bad = (tmp_path / "sums_train.jsonl").read_text(encoding="utf-8").replace('"answer": 0', '"answer": 7', 1)
    (tmp_path / "bad.jsonl").write_text(bad, encoding="utf-8")
    assert main(["plan", recipe, "--domain.train", "bad.jsonl"]) == 2
    assert "no index from 0" in capsys.readouterr().err
    assert main(["plan", recipe, "--domain.train", "sums_test.jsonl"]) == 2
    assert "every training item's question is also in the test set" in capsys.readouterr().err
    assert main(["plan", recipe, "--general.train", "none.jsonl"]) == 2
    assert "no file none.jsonl" in capsys.readouterr().err
    assert main(["plan", recipe, "--domain.train", "{hub: tiny-org/none, split: train}"]) == 0
    assert "hub:tiny-org/none" in capsys.readouterr().out  # nothing is downloaded for a plan; it says so
