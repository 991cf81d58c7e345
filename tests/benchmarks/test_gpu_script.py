"""benchmarks/gpu.py: all of it on tiny shapes in one process, and what it does of a budget, a fault and an earlier run."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What a machine with a GPU may lack. (It lacks httpx2, too, which the version of huggingface_hub that is here needs itself.)
LACKING = ("datasets", "lm_eval", "trl", "evaluate", "bitsandbytes", "matplotlib")
HIDING = f"""
import sys
from importlib.machinery import PathFinder
class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {LACKING!r} else super().find_spec(name, path, target)
sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
"""


@pytest.fixture(scope="module")
def schedule() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("gpu_parts.schedule")


# ---- the whole of it ----


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """What the command said and wrote, in a process that finds none of the packages in `LACKING`."""
    folder = tmp_path_factory.mktemp("gpu")
    (folder / "sitecustomize.py").write_text(HIDING)
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--device", "cpu", "--quick"]
    done = subprocess.run(
        [*command, "--seconds", "600", "--output", str(folder / "gpu.json")], capture_output=True, text=True,
        cwd=folder, env=os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return done, json.loads((folder / "gpu.json").read_text())


def test_every_part_runs_on_a_cpu(quick: Any, schedule: Any) -> None:
    done, report = quick
    assert done.returncode == 0, done.stdout + done.stderr
    names = [
        "1-kernels", "1-recording", "1-training", "2-llama-qv", "2-gptj-qv", "2-llama-all", "2-gptj-all", "3-llama",
        "3-gptj", "4-bandwidth", "5-memory", "6-8b", "7-many",
    ]  # fmt: skip
    assert list(report["parts"]) == names
    for name, part in report["parts"].items():
        assert part["state"] == schedule.DONE and part["figures"] and part["seconds"] > 0, name
    assert report["settings"] == {"device": "cpu", "quick": True}


def test_every_case_of_correctness_has_an_error_or_a_reason(quick: Any) -> None:
    _, report = quick
    compared = 0
    for name in ("1-kernels", "1-recording", "1-training"):
        for case, found in report["parts"][name]["figures"].items():
            if "error" in found:
                assert found["right"] and found["tolerance"] < 0.1, case
                compared += 1
            else:
                assert found.get("skipped") or found.get("note"), case
    assert compared > 40
    held = report["parts"]["1-training"]["figures"]["what holding changes"]["note"]
    assert min(held.values()) > 0.2  # ten times what the cases of holding tolerate


def test_steps_and_memory_are_of_every_format(quick: Any) -> None:
    _, report = quick
    formats = {"float32", "bfloat16", "log8", "factored", "kronecker, 64 directions"}
    for name in ("2-llama-qv", "2-gptj-qv", "2-llama-all", "2-gptj-all"):
        figures = report["parts"][name]["figures"]
        assert figures["stage_a"]["recorded_over_plain"]["of_medians"] > 0
        assert formats <= set(figures["stage_b"])
        assert all(found["held_over_plain"]["median"] > 0 for found in figures["stage_b"].values())
    rows = report["parts"]["5-memory"]["figures"]["q,v"]
    assert {f"held, {name}" for name in formats} <= set(rows)
    # Omega of q (64 x 64) and v (32 x 64).
    assert [rows[f"held, {name}"]["kept_bytes"] for name in ("float32", "bfloat16")] == [24576, 12288]


def test_the_papers_arithmetic_stands_beside_ours(quick: Any) -> None:
    _, report = quick
    for name, ratio in (("3-llama", 21.8), ("3-gptj", 23.6)):
        figures = report["parts"][name]["figures"]
        ours, costs = figures["with_the_papers_arithmetic"], figures["seconds_a_thousand_samples"]
        assert set(costs) == {"plain", "stage_a", "official", "fisher", "kronecker"}
        assert ours["published"]["ratio"] == ratio
        hours = ours["published"]["ewclora_hours"] / ours["published"]["alora_hours"]
        assert hours == pytest.approx(ratio, abs=0.05)
        assert ours["official_over_stage_a"] == pytest.approx(costs["official"] / (5 * costs["stage_a"]))
        assert ours["hours_of_one_pass"]["official"] == pytest.approx(20 * costs["official"] / 3600)


def test_what_cannot_be_run_here_says_why(quick: Any) -> None:
    _, report = quick
    parts = report["parts"]
    assert "runs on a GPU alone" in parts["1-kernels"]["figures"]["triton"]["skipped"]
    assert "CUDA's" in parts["1-training"]["figures"]["fp16 with CUDA's scaler: Omega"]["skipped"]
    assert parts["6-8b"]["figures"]["nf4"] == {"skipped": "bitsandbytes is not installed"}


# ---- budget, faults, and an earlier run ----


class Clock:
    """Seconds that pass when a part says so."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


HEAD = {"card": "a card", "settings": {"quick": False}}


def taking(seconds: float, clock: Clock, error: BaseException | None = None) -> Callable[[dict[str, Any], Any], None]:
    """What a part runs: it finds something, takes its time, and perhaps fails."""

    def run(figures: dict[str, Any], budget: Any) -> None:
        figures["found"] = seconds
        clock.seconds += seconds
        if error is not None:
            raise error

    return run


@contextmanager
def no_alarm(seconds: float) -> Iterator[None]:
    yield


def go(schedule: Any, path: Path, parts: list[Any], clock: Clock, seconds: float = 60, **settings: Any) -> Any:
    report = schedule.Report(path, HEAD, resume=settings.pop("resume", False))
    lines: list[str] = []
    failed = schedule.work_through(
        parts, report, schedule.Budget(seconds, clock=clock), stopper=no_alarm, say=lines.append, **settings
    )
    return failed, json.loads(path.read_text())["parts"], lines


def test_what_does_not_fit_is_skipped_with_its_reason_and_smaller_parts_follow(schedule: Any, tmp_path: Path) -> None:
    clock = Clock()
    parts = [
        schedule.Part("first", "", 40, taking(45, clock)),
        schedule.Part("large", "", 20, taking(20, clock)),
        schedule.Part("small", "", 15, taking(5, clock)),
    ]
    failed, found, _ = go(schedule, tmp_path / "gpu.json", parts, clock)
    assert failed == 0
    assert [part["state"] for part in found.values()] == ["done", "skipped", "done"]
    assert found["large"]["reason"] == "needs about 20 s, and 15 s of the budget are left"
    assert (found["first"]["seconds"], found["small"]["seconds"]) == (45, 5)


def test_what_was_spent_before_counts(schedule: Any, tmp_path: Path) -> None:
    clock = Clock()
    budget = schedule.Budget(60, spent=15, clock=clock)
    assert budget.left() == 45 and budget.fits(45) is None and budget.fits(46) is not None


def test_a_part_that_fails_is_recorded_with_what_it_found_and_the_next_one_begins(
    schedule: Any, tmp_path: Path
) -> None:
    clock = Clock()
    parts = [
        schedule.Part("broken", "", 1, taking(1, clock, ZeroDivisionError("by nothing"))),
        schedule.Part("wrong", "", 1, taking(1, clock, schedule.NotRight("too far off"))),
        schedule.Part("elsewhere", "", 1, taking(1, clock, schedule.Unsuitable("no such thing here"))),
        schedule.Part("next", "", 1, taking(1, clock)),
    ]
    failed, found, lines = go(schedule, tmp_path / "gpu.json", parts, clock)
    assert failed == 2
    assert [part["state"] for part in found.values()] == ["failed", "failed", "skipped", "done"]
    assert found["broken"]["error"] == "ZeroDivisionError: by nothing"
    assert found["broken"]["figures"] == {"found": 1}
    assert any("taking" in line or "raise error" in line for line in found["broken"]["traceback"])
    assert (found["wrong"]["error"], found["elsewhere"]["reason"]) == ("too far off", "no such thing here")
    assert lines[0] == "broken: failed in 1.0 s: ZeroDivisionError: by nothing"


def test_every_part_is_on_disk_before_the_next_one_begins(schedule: Any, tmp_path: Path) -> None:
    path, clock = tmp_path / "gpu.json", Clock()

    def look(figures: dict[str, Any], budget: Any) -> None:
        there = json.loads(path.read_text())["parts"]
        figures["there"] = [there[name]["state"] for name in ("first", "second")]

    parts = [schedule.Part("first", "", 1, taking(1, clock)), schedule.Part("second", "", 1, look)]
    _, found, _ = go(schedule, path, parts, clock)
    assert found["second"]["figures"]["there"] == ["done", "started"]
    assert [file.name for file in tmp_path.iterdir()] == ["gpu.json"]


def test_a_part_is_cut_off_when_the_budget_is_over(schedule: Any, tmp_path: Path) -> None:
    import time

    def endless(figures: dict[str, Any], budget: Any) -> None:
        figures["found"] = 1
        while True:
            try:
                time.sleep(0.01)
            except Exception:  # a part that goes on after a fault of its own
                continue

    report = schedule.Report(tmp_path / "gpu.json", HEAD, resume=False)
    parts = [schedule.Part("endless", "", 0.1, endless), schedule.Part("next", "", 1, endless)]
    start = time.monotonic()
    assert schedule.work_through(parts, report, schedule.Budget(0.3), say=lambda line: None) == 0
    assert 0.3 <= time.monotonic() - start < 5
    assert report.parts["endless"]["state"] == "cut off" and report.parts["endless"]["figures"] == {"found": 1}
    assert "0 s of the budget are left" in report.parts["next"]["reason"]


def test_what_is_left_is_skipped_when_the_machine_does_not_answer_any_more(schedule: Any, tmp_path: Path) -> None:
    def dead() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    clock = Clock()
    parts = [schedule.Part(name, "", 1, taking(1, clock)) for name in ("first", "second")]
    _, found, _ = go(schedule, tmp_path / "gpu.json", parts, clock, between=dead)
    assert [part["state"] for part in found.values()] == ["done", "skipped"]
    assert "does not answer any more after first" in found["second"]["reason"]


def test_a_run_that_was_cut_off_goes_on(schedule: Any, tmp_path: Path) -> None:
    path, clock = tmp_path / "gpu.json", Clock()
    parts = [
        schedule.Part("first", "", 1, taking(1, clock)),
        schedule.Part("second", "", 1, taking(2, clock, schedule.OutOfTime())),
        schedule.Part("third", "", 100, taking(3, clock)),
    ]
    failed, found, _ = go(schedule, path, parts, clock)
    assert failed == 0
    assert [part["state"] for part in found.values()] == ["done", "cut off", "skipped"]
    again = [schedule.Part(part.name, "", 1, taking(7, clock)) for part in parts]
    _, found, lines = go(schedule, path, again, clock, resume=True)
    assert [(part["state"], part["figures"]["found"]) for part in found.values()] == [
        ("done", 1),
        ("done", 7),
        ("done", 7),
    ]
    assert lines[0] == "first: kept from an earlier run"
    _, found, _ = go(schedule, path, again, clock)
    assert found["first"]["figures"]["found"] == 7  # unless it is asked for, nothing is kept


def test_a_killed_run_leaves_what_was_done(schedule: Any, tmp_path: Path) -> None:
    path, clock = tmp_path / "gpu.json", Clock()
    parts = [
        schedule.Part("first", "", 1, taking(1, clock)),
        schedule.Part("second", "", 1, taking(1, clock, KeyboardInterrupt())),
    ]
    with pytest.raises(KeyboardInterrupt):
        go(schedule, path, parts, clock)
    found = json.loads(path.read_text())["parts"]
    assert [part["state"] for part in found.values()] == ["done", "started"]
    again = [schedule.Part(part.name, "", 1, taking(7, clock)) for part in parts]
    _, found, _ = go(schedule, path, again, clock, resume=True)
    assert [(part["state"], part["figures"]["found"]) for part in found.values()] == [("done", 1), ("done", 7)]


def test_what_was_not_run_again_stays_in_the_file(schedule: Any, tmp_path: Path) -> None:
    path, clock = tmp_path / "gpu.json", Clock()
    parts = [
        schedule.Part("cut off", "", 1, taking(2, clock, schedule.OutOfTime())),
        schedule.Part("wrong", "", 1, taking(1, clock, schedule.NotRight("too far off"))),
        schedule.Part("last", "", 1, taking(1, clock)),
    ]
    go(schedule, path, parts, clock)
    again = [schedule.Part("cut off", "", 100, taking(1, clock)), schedule.Part("new", "", 1, taking(1, clock))]
    _, found, _ = go(schedule, path, again, clock, resume=True)
    assert {name: part["state"] for name, part in found.items()} == {
        "cut off": "cut off", "wrong": "failed", "last": "done", "new": "done",
    }  # fmt: skip
    assert found["cut off"]["figures"] == {"found": 2}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps({"card": "another card", "settings": {"quick": False}, "parts": {}}), "card 'another card' there"),
        (json.dumps({"card": "a card", "settings": {"quick": True}, "parts": {}}), "settings {'quick': True} there"),
        (json.dumps({"schema": 1}), "is no report of this script"),
        ("half a fi", "is no report of this script"),
    ],
)
def test_another_cards_figures_are_not_gone_on_with(schedule: Any, tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        schedule.Report(path, HEAD, resume=True)
    assert path.read_text() == content


# ---- what the parts are made of ----


def test_a_case_that_is_above_its_tolerance_fails_its_part(schedule: Any) -> None:
    cases_module, figures = importlib.import_module("gpu_parts.cases"), {}
    cases = cases_module.Cases(figures, schedule.Budget(60))

    def impossible() -> float:
        raise schedule.Unsuitable("not here")

    cases.compare("right", 1e-3, lambda: {"a": 1e-4, "b": 0.0})
    cases.compare("elsewhere", 1e-3, impossible)
    cases.note("known", of_interest=1)
    cases.finish()
    cases.compare("wrong", 1e-3, lambda: {"a": 1e-2, "b": 0.0})
    cases.compare("no number", 1e-3, lambda: {"a": 0.0, "b": float("nan")})
    cases.compare("broken", 1e-3, lambda: 1 / 0)
    with pytest.raises(schedule.NotRight, match="3 cases .* wrong; no number; broken"):
        cases.finish()
    assert figures["broken"]["raised"] == "ZeroDivisionError: division by zero"


def test_a_wrong_kernel_is_found(schedule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from alora_trainer.penalty.backends.backend import PenaltyResult

    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    kernels = importlib.import_module("gpu_parts.kernels")
    settings = importlib.import_module("gpu_parts.settings").Settings("cpu", quick=True)
    right = kernels.Case.run

    def off(case: Any, backend: str | None) -> Any:
        got = right(case, backend)
        return PenaltyResult(got.value, got.gradient_a, got.gradient_b * (1 + 1e-4))

    monkeypatch.setattr(kernels.Case, "run", off)
    with pytest.raises(schedule.NotRight):
        kernels.correct_kernels(settings, {}, schedule.Budget(60))


def test_the_batch_is_halved_until_it_fits(schedule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    training = importlib.import_module("gpu_parts.training")
    settings = importlib.import_module("gpu_parts.settings").Settings("cpu", quick=True)
    tried = []

    def work(most: int) -> Callable[[int], str]:
        def run(batch: int) -> str:
            tried.append(batch)
            if batch > most:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
            return "fits"

        return run

    assert training.halving(settings, work(6), 20) == (5, "fits")
    assert tried == [20, 10, 5]
    with pytest.raises(torch.cuda.OutOfMemoryError):
        training.halving(settings, work(0), 2)


def test_parts_are_chosen_by_the_beginnings_of_their_names(schedule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    gpu = importlib.import_module("gpu")
    settings = gpu.Settings("cuda", False)
    assert [part.name for part in gpu.parts_of(settings, ["2-gptj", "1-kernels"])] == [
        "1-kernels",
        "2-gptj-qv",
        "2-gptj-all",
    ]
    with pytest.raises(ValueError, match="no part '8': use some of 1-kernels"):
        gpu.parts_of(settings, ["8"])
    if not importlib.import_module("torch").cuda.is_available():
        with pytest.raises(SystemExit):
            gpu.main(["--device", "cuda"])
