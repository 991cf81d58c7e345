"""However a batch is divided into micro-batches and over processes, the trajectory is the committed one.

The classes are as in TRL's invariants: (batch, accumulation, processes) of one product are one training.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.launching import launch_two
from tests.tiny_recipe import make_collecting_cheap, write_all
from tests.trainer.invariants.trajectories import APPLICATIONS, COMMITTED, STEPS, run, trajectory

# Wide enough for another processor's order of additions, and narrow: a penalty counted twice is off by 1..
RELATIVE, ABSOLUTE = 2e-3, 1e-7


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    make_collecting_cheap()
    return write_all(tmp_path_factory.mktemp("recipe"))


def assert_committed(found: dict[str, Any]) -> None:
    expected = json.loads(COMMITTED.read_text())
    for part in ("record", *APPLICATIONS):
        assert len(found[part]) == len(expected[part]) == STEPS
        for step, (got, line) in enumerate(zip(found[part], expected[part], strict=True)):
            assert got == pytest.approx(line, rel=RELATIVE, abs=ABSOLUTE), (part, step)
    assert found["importance"] == pytest.approx(expected["importance"], rel=RELATIVE)


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 1), (2, 2), (1, 4)])
def test_one_process(recipe, tmp_path, batch, accumulation):
    run(recipe, tmp_path, batch, accumulation)
    assert_committed(trajectory(tmp_path))


def test_two_processes(recipe, tmp_path):
    launch_two("trainer/invariants/worker.py", str(recipe), str(tmp_path), "1", "2")
    assert sorted(path.name for path in tmp_path.glob("done-*")) == ["done-0", "done-1"]
    assert_committed(trajectory(tmp_path))
    assert (tmp_path / "coupled" / "alora" / "adapter" / "adapter_model.safetensors").is_file()
