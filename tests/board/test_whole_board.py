"""A whole board: trials, choice, finals, numbers; killed in the middle and gone on with, it is the same, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.board.board_file import read_board
from alora_trainer.experiment.board.board_json import read_board_json
from alora_trainer.experiment.board.measures import MEASURES
from alora_trainer.experiment.board.taken_over import FinishedRows
from alora_trainer.experiment.board.whole_board import run_board
from alora_trainer.experiment.run import evaluate
from alora_trainer.experiment.run.scheduling.scheduler import Scheduler
from tests.board.tiny_board import stay_in_this_process, write_board_file, write_board_files
from tests.tiny_recipe import make_collecting_cheap


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    make_collecting_cheap()
    return write_board_files(tmp_path_factory.mktemp("board"))


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The board, run without interruption."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        stay_in_this_process(monkeypatch)
        return run_board(read_board(tiny), output_dir=tmp_path_factory.mktemp("made"), resamples=99)


def test_everything_is_in_the_json(made: Path) -> None:
    content = read_board_json(made)
    assert content["complete"] and [row["name"] for row in content["rows"]] == ["lora", "curved"]
    assert content["rows"][1]["text"] == "held by curvature" and content["rows"][1]["method"] == "kfac"
    (found,) = content["results"]
    assert (found["model"], found["task"], found["recorded"], found["other"]) == (
        "little",
        "sums",
        ["words"],
        ["others"],
    )
    assert [(one["row"], one["trial"]) for one in found["trials"]] == [
        ("lora", "learning_rate=0.01"),
        ("lora", "learning_rate=0.05"),
        ("curved", "lam=0.001"),
        ("curved", "lam=10"),
    ]
    assert [sum(one["final"] for one in found["trials"] if one["row"] == row) for row in ("lora", "curved")] == [1, 1]
    weak, strong = (one["validation"] for one in found["trials"][2:])
    assert abs(strong["rise"]) < abs(weak["rise"])  # held ten thousand times as strongly
    for final in found["finals"]:
        assert list(final["seeds"]) == ["0", "1"]
        for figures in final["seeds"].values():
            assert all(isinstance(figures[name], float) for name in MEASURES)
            assert figures["rises"].keys() == {"words", "others"}
            assert figures["learned"] == pytest.approx(found["base"]["choices"] - figures["choices"])
            assert 0 <= figures["top_changed"] <= 1 and figures["kl"] >= 0
    one, two = (final["seeds"]["0"] for final in found["finals"])
    assert one["rise"] != two["rise"]
    tokens = found["base"]["tokens"]
    assert tokens > 0
    low, high = sorted((one["rise_recorded"], one["rise_other"]))
    assert low < one["rise"] < high
    assert {entry["measure"] for entry in found["comparisons"]} == {
        "rise_at_90", "rise_at_95", "area", "rise", "choices", "accuracy"
    }  # fmt: skip
    assert {(entry["row"], entry["against"]) for entry in found["comparisons"]} == {("curved", "lora")}
    assert {row["row"] for row in found["rows"]} == {"lora", "curved"}
    assert found["noise"]["rise"]["df"] == 1
    costs = json.loads((made.parent / "costs.json").read_text())["trainings"]
    assert sum(cost.get("train", {}).get("steps") == 4 for cost in costs.values()) == 4 + 2 * 2


def test_killed_in_the_middle_and_gone_on_with_it_is_the_same(
    tiny: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stay_in_this_process(monkeypatch)
    step, done = transformers.Trainer.training_step, [0]

    def counted(self: Any, *arguments: Any, **settings: Any) -> Any:
        done[0] += 1
        if done[0] in (11, 30):  # in the third step of a trial's training, and later in a final's
            raise KeyboardInterrupt
        return step(self, *arguments, **settings)

    monkeypatch.setattr(transformers.Trainer, "training_step", counted)
    board = read_board(tiny)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_board(board, output_dir=tmp_path / "out", resamples=99)
    assert not list((tmp_path / "out").glob("*.partial"))
    again = run_board(board, output_dir=tmp_path / "out", workers=3, resamples=99)
    # Two steps that were begun count twice: what was finished was not done again.
    assert done[0] == 4 * (4 + 2 * 2) + 2
    assert again.read_bytes() == made.read_bytes()
    run_board(board, output_dir=tmp_path / "out", resamples=99)
    assert done[0] == 34 and again.read_bytes() == made.read_bytes()


def test_a_part_of_a_board_says_what_is_missing(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stay_in_this_process(monkeypatch)
    settings = {"seeds": "0", "points": 1, "settings": {}}
    changed = write_board_file(tiny.parent / "part.yaml", finals=settings)
    content = read_board_json(run_board(read_board(changed), output_dir=tmp_path, only=["lora"], resamples=99))
    assert not content["complete"] and content["results"][0]["not_finished"] == ["curved"]
    assert {row["row"] for row in content["results"][0]["rows"]} == {"lora"}
    assert content["results"][0]["comparisons"] == [] and content["results"][0]["noise"] == {}

    train = transformers.Trainer.train

    def failing(self: Any, *arguments: Any, **settings: Any) -> Any:
        if "curved" in self.args.output_dir and "0.001" in self.args.output_dir:
            raise ZeroDivisionError("no")
        return train(self, *arguments, **settings)

    work, together = Scheduler.work, []

    def noted(self: Scheduler, *arguments: Any, **settings: Any) -> None:
        together.append([unit.name for unit in self._units])
        work(self, *arguments, **settings)

    monkeypatch.setattr(Scheduler, "work", noted)
    monkeypatch.setattr(transformers.Trainer, "train", failing)
    with pytest.raises(ALoRAError, match="2 trainings of the board failed.*curved.*: no"):
        run_board(read_board(changed), output_dir=tmp_path, resamples=99)
    content = read_board_json(tmp_path)
    assert [one["row"] for one in content["results"][0]["trials"]] == ["lora", "lora"]
    # No worker waits for the choice among a row's trials: those of the next row are trained beside the finals.
    assert any({"lora,final", "curved,validation"} <= {_kind(name) for name in names} for names in together)
    # What failed was tried once.
    assert sum(name.endswith("curved,lam=0.001") for names in together for name in names) == 1
    assert content["results"][0]["not_finished"] == ["curved"]


def test_a_test_that_the_base_model_cannot_be_scored_on_is_told(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stay_in_this_process(monkeypatch)
    score = evaluate.evaluate_model

    def failing(*arguments: Any, samples_path: Path, **settings: Any) -> Any:
        if "final" in samples_path.parts:
            raise ZeroDivisionError("no")
        return score(*arguments, samples_path=samples_path, **settings)

    monkeypatch.setattr(evaluate, "evaluate_model", failing)
    with pytest.raises(ALoRAError, match="the base model could not be scored: .*final.*: no"):
        run_board(read_board(tiny), output_dir=tmp_path, resamples=99)


def _kind(cell: str) -> str:
    row = "curved" if "curved" in cell else "lora" if "lora" in cell else "base"
    return f"{row},{'final' if ',final,' in cell else 'validation'}"


def test_what_cannot_be_done_is_said_before_anything_is_written(tiny: Path, tmp_path: Path) -> None:
    rows = {"lora": {"grid": {"tune.learning_rate": [0.01, 0.05]}}, "kfac": {"grid": {"alora.lamb": [1, 2]}}}
    board = read_board(write_board_file(tiny.parent / "wrong.yaml", rows=rows))
    with pytest.raises(ALoRAError, match="row kfac: .*did you mean .*alora.lam"):
        run_board(board, output_dir=tmp_path / "out")
    with pytest.raises(ALoRAError, match="--workers 0"):
        run_board(board, output_dir=tmp_path / "out", workers=0)
    assert not (tmp_path / "out").exists()


def test_rows_finished_elsewhere_are_taken_over_and_the_file_is_the_same(
    tiny: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stay_in_this_process(monkeypatch)
    train, trained = transformers.Trainer.train, []

    def noted(self: Any, *arguments: Any, **settings: Any) -> Any:
        place = Path(self.args.output_dir).as_posix()
        trained.append(("curved" if "curved" in place else "lora", "final" if "/final/" in place else "validation"))
        return train(self, *arguments, **settings)

    monkeypatch.setattr(transformers.Trainer, "train", noted)
    board = read_board(tiny)
    again = run_board(board, output_dir=tmp_path / "all", resamples=99, finished=made)
    assert trained == [("lora", "final")] * 2 and again.read_bytes() == made.read_bytes()

    # The other way round: what is missing there is trained here.
    part = run_board(board, output_dir=tmp_path / "part", only=["lora"], resamples=99)
    trained.clear()
    rest = run_board(board, output_dir=tmp_path / "rest", resamples=99, finished=part)
    assert set(trained) == {("lora", "final"), ("curved", "validation"), ("curved", "final")}
    assert rest.read_bytes() == made.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["written"].update(trials=3), "another trials than"),
        (lambda content: content["written"]["settings"].update({"tune.max_steps": 5}), "another settings than"),
        (lambda content: content["environment"].update(torch="1.0"), r"torch 1\.0 \(here"),
        (lambda content: content["results"][0].update(task="products"), "other models or tasks"),
        (lambda content: content["results"][0].update(not_finished=["lora"]), "no finished row lora"),
        (lambda content: content["written"]["rows"]["lora"].update(text="other"), "no finished row lora"),
        (lambda content: content.pop("written"), "does not say what board"),
    ],
)
def test_rows_of_another_board_are_refused_before_anything_is_trained(
    tiny: Path, made: Path, tmp_path: Path, change: Any, message: str
) -> None:
    content = json.loads(made.read_text())
    change(content)
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    with pytest.raises(ALoRAError, match=message):
        run_board(read_board(tiny), output_dir=tmp_path / "out", finished=other)
    assert not (tmp_path / "out").exists()


def test_rows_of_the_schema_before_are_taken_over_without_what_was_measured_otherwise(
    tiny: Path, made: Path, tmp_path: Path
) -> None:
    """Trials, finals and what items said stay; documents were drawn without their tokens, and areas had another corner."""
    content = json.loads(made.read_text())
    content["schema"] = 1
    for result in content["results"]:
        for row in result["rows"]:
            row["hypervolume"] = row.pop("area")
        for one in result["comparisons"]:
            del one["units"]
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps(content))
    before, now = (FinishedRows(read_board(tiny), path) for path in (earlier, made))
    place = "little", content["results"][0]["task"]
    known, whole = before.known(*place), now.known(*place)
    assert known.keys() == whole.keys() and known["curved", "lora", "rise"] is None
    assert whole["curved", "lora", "rise"] is not None
    of_items, same = known["curved", "lora", "choices"], whole["curved", "lora", "choices"]
    assert of_items is not None and same is not None and {**of_items, "units": same["units"]} == same
    assert [row.chosen for row in before.rows(*place)] == [row.chosen for row in now.rows(*place)]
    with pytest.raises(ALoRAError, match="the same `alora board` in its folder writes it anew"):
        read_board_json(earlier)


def test_rows_of_a_machine_that_computes_otherwise_are_refused_once_the_reference_is_there(
    tiny: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stay_in_this_process(monkeypatch)
    content = json.loads(made.read_text())
    content["results"][0]["finals"][0]["seeds"]["0"]["rise"] += 1e-9
    content["results"][0]["not_finished"] = ["curved"]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    with pytest.raises(ALoRAError, match="lora does not come out as in .*other.json"):
        run_board(read_board(tiny), output_dir=tmp_path / "out", workers=4, resamples=99, finished=other)
    assert not (tmp_path / "out" / "board.json").exists()
    assert not list((tmp_path / "out" / "cells").glob("*curved*"))  # no other row was begun, for as many as could be
    content["results"][0]["base"]["cross_entropy"] += 1e-9
    other.write_text(json.dumps(content))
    with pytest.raises(ALoRAError, match="the untouched model does not come out"):
        run_board(read_board(tiny), output_dir=tmp_path / "out", resamples=99, finished=other)
