"""Ctrl-C under torchrun: whoever is told, all processes stop after the same step."""

from __future__ import annotations

from pathlib import Path

from tests.launching import launch_two
from tests.older_libraries import goes_on_in_several_cpu_processes


def test_two_processes_stop_together_with_a_checkpoint_and_go_on(tmp_path: Path) -> None:
    goes_on_in_several_cpu_processes()
    launch_two("interrupted_worker.py", str(tmp_path), timeout=120)
    saved = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert saved == ["checkpoint-2", "checkpoint-4"]  # without the first: steps 1 to 4 in vain
