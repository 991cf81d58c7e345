"""Sweeps: what is planned, that nothing is done twice, that a stopped sweep goes on, and one for real."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from alora_trainer.cli.command_line import main
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.run.scheduling import scheduler, workers
from alora_trainer.experiment.run.sweep import (
    Cell,
    Grid,
    cell,
    cells_of,
    parse_over,
    parse_seeds,
    read_sweep_file,
    run_sweep,
)
from tests.tiny_recipe import make_collecting_cheap, write_all


@pytest.fixture(autouse=True)
def _undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alora_trainer.cli.command_line.configure_output", lambda: None)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    make_collecting_cheap()
    return write_all(tmp_path_factory.mktemp("sweep"))


def test_what_is_swept_over() -> None:
    assert parse_over(["lam=0.01,0.1", "tune.learning_rate=1e-3"]) == {
        "alora.lam": ["0.01", "0.1"],
        "tune.learning_rate": ["1e-3"],
    }
    assert parse_over(["lora.target_modules=[q_proj,v_proj],all-linear"]) == {
        "lora.target_modules": ["[q_proj,v_proj]", "all-linear"]
    }
    for wrong, message in (
        ("lam", "write it as"),
        ("lam=", "write it as"),
        ("lam=1,,2", "write it as"),
        ("lamda=1", "no setting lamda"),
        ("seed=1", "not swept over"),
        ("lam=1,1", "something twice"),
    ):
        with pytest.raises(ALoRAError, match=message):
            parse_over([wrong])
    assert parse_seeds("0,2, 5-7") == [0, 2, 5, 6, 7]
    for text in ("", "a", "3-1", "1,1", "0-1,1"):
        with pytest.raises(ALoRAError, match="--seeds"):
            parse_seeds(text)


def test_what_depends_on_lambda_is_varied_and_the_rest_is_shared(tiny: Path) -> None:
    cells = cells_of(Grid(tiny, over={"alora.lam": ["0.1", "1"]}, seeds=[0, 1]))
    assert [(cell.name, cell.folder, cell.methods, cell.variant, cell.after) for cell in cells[:3]] == [
        ("seed-0", "seed-0", ("base", "lora", "lora_ab"), None, ()),
        ("seed-0,lam=0.1", "seed-0", ("alora",), "lam=0.1", ("seed-0",)),
        ("seed-0,lam=1", "seed-0", ("alora",), "lam=1", ("seed-0", "seed-0,lam=0.1")),
    ]
    assert [cell.folder for cell in cells[3:]] == ["seed-1"] * 3
    assert cells[4].overrides == {"seed": "1", "alora.lam": "0.1"}


def test_a_varied_recording_is_not_shared(tiny: Path) -> None:
    cells = cells_of(Grid(tiny, over={"alora.record": ["path", "paper"]}))
    assert [(cell.folder, cell.variant) for cell in cells] == [
        ("seed-0,record=path", None),
        ("seed-0,record=paper", None),
    ]
    assert all(cell.methods == ("base", "lora", "lora_ab", "alora") for cell in cells)


def test_a_setting_of_the_tuning_varies_all_that_tunes(tiny: Path) -> None:
    over = {"tune.learning_rate": ["1e-3", "1e-2"]}
    assert [cell.methods for cell in cells_of(Grid(tiny, over=over))] == [
        ("base",),
        *[("lora", "lora_ab", "alora")] * 2,
    ]
    only = cells_of(Grid(tiny, over=over, only=["alora"]))
    assert [cell.methods for cell in only] == [("base", "lora", "lora_ab"), ("alora",), ("alora",)]
    assert [cell.methods for cell in cells_of(Grid(tiny))] == [("base", "lora", "lora_ab", "alora")]
    with pytest.raises(ALoRAError, match="the method osf is to be varied"):
        cells_of(Grid(tiny, over=over, only=["osf"]))


def test_a_single_value_is_not_left_out(tiny: Path) -> None:
    """Nothing differs between the cells then; it differs from the recipe."""
    cells = cells_of(Grid(tiny, over={"alora.lam": ["7"]}))
    assert [(one.methods, one.overrides.get("alora.lam")) for one in cells] == [
        (("base", "lora", "lora_ab"), None),
        (("alora",), "7"),
    ]
    (alone,) = cells_of(Grid(tiny, over={"alora.record": ["paper"]}))
    assert alone.folder == "seed-0,record=paper" and alone.overrides["alora.record"] == "paper"


def test_a_sweep_file(tiny: Path, tmp_path: Path) -> None:
    path = tiny.parent / "several.yaml"
    path.write_text(
        "recipes: [recipe.yaml]\nseeds: 0-1\nsettings: {tune.max_steps: 2, methods: [base, alora], alora.xi: 1e-4}\n"
        "over: {lam: [0.1, 1]}\nonly: [alora]\n"
    )
    (grid,) = read_sweep_file(path, {"tune.max_steps": "3"}) or []
    assert grid.overrides == {"tune.max_steps": "3", "methods": "[base, alora]", "alora.xi": "0.0001"}
    assert (grid.over, grid.seeds, grid.only, grid.name) == ({"alora.lam": ["0.1", "1"]}, [0, 1], ["alora"], "recipe")
    assert [cell.folder for cell in cells_of(grid)] == ["recipe/seed-0"] * 3 + ["recipe/seed-1"] * 3
    assert read_sweep_file(tiny, {}) is None
    for text, message in (
        ("recipes: recipe.yaml\n", "must be a list"),
        ("recipes: [recipe.yaml]\nsede: 1\n", "did you mean seeds"),
        ("recipes: [recipe.yaml]\nover: {lam: 1}\n", "list of values"),
        ("recipes: [a/recipe.yaml, b/recipe.yaml]\n", "called alike"),
    ):
        (tmp_path / "wrong.yaml").write_text(text)
        with pytest.raises(ALoRAError, match=message):
            read_sweep_file(tmp_path / "wrong.yaml", {})


def test_the_shipped_sweeps_can_be_planned(shared: Path) -> None:
    files = sorted((Path(__file__).resolve().parents[2] / "recipes" / "sweeps").glob("*.yaml"))
    assert files
    for file in files:
        grids = read_sweep_file(file, {})
        assert grids
        for grid in grids:
            assert len(cells_of(grid)) >= len(grid.seeds)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Threads instead of processes, and cells that only say their names; the list has those that were worked on."""
    worked: list[str] = []

    def work_on_cell(cell: Cell, folder: Path, *, overwrite: bool) -> dict[str, Any]:
        worked.append(cell.name)
        entries = {f"{name}@{cell.variant}" if cell.variant else name: {"tasks": {}} for name in cell.methods}
        return {"entries": entries, "overlap": {"items": 3} if cell.variant is None else None}

    class Pool(ThreadPoolExecutor):
        _processes: Any = None

        def __init__(self, workers: int, context: Any, initializer: Any, arguments: Any) -> None:
            super().__init__(workers)

    monkeypatch.setattr(workers, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(cell, "work_on_cell", work_on_cell)
    return worked


@pytest.fixture
def sweep(tiny: Path, tmp_path: Path) -> Callable[..., list[Path]]:
    grid = Grid(tiny, over={"alora.lam": ["0.1", "1"]}, seeds=[0, 1])
    return lambda **settings: run_sweep([grid], output_dir=tmp_path / "out", **settings)


def test_results_progress_and_what_is_done_already(
    sweep: Callable[..., list[Path]], pretended: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "alora_trainer"):
        assert sweep(workers=2) == [tmp_path / "out" / "seed-0", tmp_path / "out" / "seed-1"]
    assert sorted(pretended) == sorted(f"seed-{seed}{cell}" for seed in (0, 1) for cell in ("", ",lam=0.1", ",lam=1"))
    for seed in (0, 1):
        own = [name for name in pretended if name.startswith(f"seed-{seed}")]
        assert own == [f"seed-{seed}", f"seed-{seed},lam=0.1", f"seed-{seed},lam=1"]
        results = json.loads((tmp_path / "out" / f"seed-{seed}" / "results.json").read_text())
        assert list(results["methods"]) == ["base", "lora", "lora_ab", "alora@lam=0.1", "alora@lam=1"]
        assert results["recipe"]["seed"] == seed and results["overlap"] == {"items": 3}
    lines = [record.message for record in caplog.records if record.message.startswith("sweep:")]
    assert lines[0].startswith("sweep: 1 of 6 cells done") and "left" in lines[0] and "left" not in lines[-1]
    pretended.clear()
    sweep(workers=2)
    assert pretended == []
    with pytest.raises(ALoRAError, match="--workers 0"):
        sweep(workers=0)


def test_a_seed_is_finished_before_the_next_is_begun(sweep: Callable[..., list[Path]], pretended: list[str]) -> None:
    """Stopped half-way, a sweep then has all methods of some seeds, and not some methods of all seeds."""
    sweep()
    assert pretended == [f"seed-{seed}{cell}" for seed in (0, 1) for cell in ("", ",lam=0.1", ",lam=1")]


def test_a_stopped_sweep_goes_on_and_a_failure_stops_only_what_needs_it(
    sweep: Callable[..., list[Path]], pretended: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_on_cell = cell.work_on_cell

    def failing(error: BaseException, at: str) -> Callable[..., dict[str, Any]]:
        def work(one: Cell, folder: Path, *, overwrite: bool) -> dict[str, Any]:
            if one.name == at:
                raise error
            return work_on_cell(one, folder, overwrite=overwrite)

        return work

    monkeypatch.setattr(cell, "work_on_cell", failing(ZeroDivisionError("no"), "seed-0,lam=0.1"))
    with pytest.raises(ALoRAError, match=r"2 of 6 cells of the sweep failed; seed-0,lam=0.1: no"):
        sweep()
    assert sorted(pretended) == ["seed-0", "seed-1", "seed-1,lam=0.1", "seed-1,lam=1"]
    assert "lora_ab" in json.loads((tmp_path / "out" / "seed-0" / "results.json").read_text())["methods"]
    pretended.clear()

    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(cell, "work_on_cell", work_on_cell)
    wait = scheduler.wait
    monkeypatch.setattr(scheduler, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep()
    monkeypatch.setattr(scheduler, "wait", wait)
    pretended.clear()
    sweep()
    assert pretended == ["seed-0,lam=0.1", "seed-0,lam=1"]


def test_other_settings_are_refused(
    sweep: Callable[..., list[Path]], pretended: list[str], tiny: Path, tmp_path: Path
) -> None:
    sweep()
    other = Grid(tiny, {"tune.learning_rate": "0.5"}, {"alora.lam": ["0.1", "1"]}, [0, 1])
    with pytest.raises(ALoRAError, match="tune.learning_rate was 0.01 and is 0.5"):
        run_sweep([other], output_dir=tmp_path / "out")
    pretended.clear()
    run_sweep([other], output_dir=tmp_path / "out", overwrite=True)
    assert len(pretended) == 6


def test_a_sweep_for_real(tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Processes of its own; the recording is made once, and the strengths end at different places."""
    options = ["--methods", "alora", "--over", "lam=0,100", "--tune.max_steps", "6", "--evaluation.limit", "4"]
    command = ["sweep", str(tiny), *options, "--output_dir", str(tmp_path)]
    assert main(command) == 0
    results = json.loads((tmp_path / "seed-0" / "results.json").read_text())
    free, held = results["methods"]["alora@lam=0"], results["methods"]["alora@lam=100"]
    assert free["settings"]["protecting.lam"] == 0 and held["settings"]["protecting.lam"] == 100
    assert 0 < sum(held["train"]["drift"].values()) < sum(free["train"]["drift"].values())
    assert free["record"] == held["record"] and set(free["layer_norms"]) == set(free["train"]["drift"])
    assert held["train"]["history"]["training"]["step"] == [1, 2, 3, 4, 5, 6]
    assert results["overlap"]["run_words"] == 13 and results["overlap"]["items"] == 8
    folders = {path.name for path in (tmp_path / "seed-0").iterdir() if path.is_dir()}
    assert folders == {"data", "record", "overlap", "alora@lam=0", "alora@lam=100"}
    assert f"results: {tmp_path / 'seed-0' / 'results.json'}" in capfd.readouterr().out


def test_a_sweep_that_is_killed_leaves_no_worker_behind(tiny: Path, tmp_path: Path) -> None:
    """A worker left alone would write into the folder beside the next sweep's."""
    options = ["--methods", "lora", "--tune.max_steps", "100000", "--output_dir", str(tmp_path / "out")]
    command = [sys.executable, "-m", "alora_trainer.cli", "sweep", str(tiny), *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as sweep:
        children = Path(f"/proc/{sweep.pid}/task/{sweep.pid}/children")
        if not children.exists():
            sweep.kill()
            pytest.skip("needs Linux's list of a process's children")
        _until(lambda: (tmp_path / "out" / "seed-0" / "lora" / "settings.json").exists())
        workers = [int(number) for number in children.read_text().split()]
        sweep.kill()
    assert workers
    _until(lambda: not any(_runs(worker) for worker in workers))


def _until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.1)


def _runs(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
