"""Where pieces of work are done: processes with a GPU each, and jobs of a cluster (here processes in the jobs' place)."""

from __future__ import annotations

import logging
import os
from concurrent.futures import Future
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from alora_trainer.cli.command_line import make_parser
from alora_trainer.cli.commands.common import workers_of
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.run.scheduling import work_progress, workers
from alora_trainer.experiment.run.scheduling.scheduler import PROGRESS_FILE, Scheduler, WorkUnit
from alora_trainer.experiment.run.scheduling.slurm import SlurmJobs
from alora_trainer.experiment.run.scheduling.work_progress import WorkProgress
from alora_trainer.experiment.run.scheduling.workers import Workers
from alora_trainer.experiment.run.stage import Stage
from tests import scheduled_work


def test_each_process_has_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    (tmp_path / "met").mkdir()
    units = [
        WorkUnit(name, Stage(tmp_path / name, {}, "outcome"), partial(scheduled_work.meet, tmp_path / "met", name, 2))
        for name in ("one", "two")
    ]
    scheduler = Scheduler(units, name="test")
    scheduler.work(Workers(2), tmp_path)
    assert {found["gpu"] for found in scheduler.outcomes.values()} == {"3", "5"}
    assert len({found["process"] for found in scheduler.outcomes.values()} | {os.getpid()}) == 3


def failed(future: Future[Any]) -> str:
    error = future.exception(timeout=60)
    assert isinstance(error, ALoRAError)
    return str(error)


def test_jobs_work_at_once_and_say_what_went_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    (tmp_path / "met").mkdir()
    with SlurmJobs(tmp_path / "slurm", {"timeout_min": 5}, cluster="local") as jobs:
        good = [jobs.submit(partial(scheduled_work.meet, tmp_path / "met", name, 2)) for name in ("one", "two")]
        refused, broken = jobs.submit(scheduled_work.refuse), jobs.submit(scheduled_work.break_down)
        assert len({future.result(timeout=60)["process"] for future in good} | {os.getpid()}) == 3
        assert failed(refused) == "this cannot be done"
        said = failed(broken)
        assert "failed: ValueError: a fault of the program" in said
        assert Path(said.partition("its output: ")[2].rstrip(")")).is_file()
    assert not (tmp_path / "slurm" / "submitted.txt").exists()


def test_jobs_that_outlived_their_scheduler_are_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would go on writing where those of the next call write."""
    submitit = pytest.importorskip("submitit")
    folder = tmp_path / "slurm"
    folder.mkdir()
    (folder / "submitted.txt").write_text("11\n12\n")
    cancelled: list[str] = []

    class Earlier:
        def __init__(self, place: Path, name: str) -> None:
            assert place == folder
            self.name = name

        def done(self) -> bool:
            return self.name == "11"

        def cancel(self) -> None:
            cancelled.append(self.name)

    monkeypatch.setattr(submitit, "LocalJob", Earlier)
    with SlurmJobs(folder, {}, cluster="local"):
        assert cancelled == ["12"] and not (folder / "submitted.txt").exists()


def test_what_an_exception_leaves_is_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitit = pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    cancelled: list[str] = []
    cancel = submitit.LocalJob.cancel

    def noted(self: Any, check: bool = True) -> None:
        cancelled.append(self.job_id)
        cancel(self, check)

    monkeypatch.setattr(submitit.LocalJob, "cancel", noted)
    (tmp_path / "met").mkdir()
    with pytest.raises(KeyboardInterrupt), SlurmJobs(tmp_path / "slurm", {}, cluster="local") as jobs:
        jobs.submit(partial(scheduled_work.meet, tmp_path / "met", "one", 2))
        raise KeyboardInterrupt
    assert len(cancelled) == 1


def test_what_cannot_be_submitted_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ALoRAError, match="there is no sbatch here"), Workers(2, {}).pool(2, tmp_path):
        pass
    with pytest.raises(ALoRAError, match="--slurm: .*partitoin"):
        SlurmJobs(tmp_path, {"partitoin": "gpu"}, cluster="local")


def test_the_options() -> None:
    parse = make_parser().parse_args
    asked = workers_of(parse(["board", "FILE", "--workers", "8", "--slurm", "timeout_min=240", "slurm_partition=gpu"]))
    assert asked == Workers(8, {"timeout_min": 240, "slurm_partition": "gpu"})
    assert workers_of(parse(["board", "FILE"])) == Workers(1)
    for given, message in (
        (["--slurm", "gpu"], "--slurm gpu: write it as KEY=VALUE"),
        (["--workers", "0"], "--workers 0"),
    ):
        with pytest.raises(ALoRAError, match=message):
            workers_of(parse(["board", "FILE", *given]))


def test_ctrl_c_lets_the_workers_save(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """And says of none of them that it failed."""
    unit = WorkUnit("one", Stage(tmp_path / "one", {}, "outcome"), partial(scheduled_work.save_when_told, tmp_path))
    other = WorkUnit("two", Stage(tmp_path / "two", {}, "outcome"), scheduled_work.refuse)
    scheduler = Scheduler([other, unit], name="test")
    seen: list[str] = []

    class Pressed(WorkProgress):
        def beat(self) -> None:
            if (tmp_path / "started").exists():
                seen.append(self._text(short=False))
                raise KeyboardInterrupt

    scheduler._progress = Pressed("test")
    with pytest.raises(KeyboardInterrupt):
        scheduler.work(Workers(1), tmp_path)
    assert (tmp_path / "saved").read_text() == "1"
    assert "under way: one (" in seen[0] and "s: step 1 of many)" in seen[0]
    assert not (tmp_path / "one" / PROGRESS_FILE).exists() and list(scheduler.failures) == ["two"]
    assert "Traceback" not in capfd.readouterr().err


def test_a_worker_that_ends_while_it_is_stopped_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool's thread has reaped it between the look at it and the signal."""
    ended = get_context("spawn").Process(target=os.getpid)
    ended.start()
    ended.join()
    monkeypatch.setattr(ended, "is_alive", lambda: True)
    workers._terminate([ended])
    assert ended.exitcode == 0


def test_progress_of_work_is_told_at_its_ends_and_between(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_progress, "bars_shown", lambda: False)
    now = [0.0]
    progress = WorkProgress("board", clock=lambda: now[0])
    with caplog.at_level(logging.INFO, "alora_trainer"), progress:
        progress.later = 3
        progress.expect({"base": 2.0, "a": 1.0, "b": 1.0}, ["b"])
        progress.begin("base", tmp_path / "none", 1)
        for seconds in (10, 19, 21, 30):
            now[0] = seconds
            progress.beat()
        now[0] = 40
        progress.end("base")
        progress.begin("a", tmp_path / "a.txt", 1)
        (tmp_path / "a.txt").write_text("step 4 of 9, loss 2.3, 5 s left\n")
        now[0] = 70
        progress.beat()
        progress.later = 0
        progress.end("a")
    assert [record.message for record in caplog.records] == [
        "board: 1 of at most 6 cells are finished already",
        "board: 1 of at most 6 cells done; under way: base (30 s)",
        "board: 2 of at most 6 cells done (base: 40 s), about 1 min 20 s left",
        "board: 2 of at most 6 cells done, about 1 min 0 s left; under way: a (30 s: step 4 of 9, loss 2.3, 5 s left)",
        "board: 3 of 3 cells done (a: 30 s)",
    ]
