"""Commands that a test launches, and ends with all that they started if they hang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def launch(
    command: Sequence[str], environment: Mapping[str, str], timeout: float = 400
) -> subprocess.CompletedProcess[str]:
    """Run `command` in a session of its own, which is killed whole after `timeout` seconds."""
    process = subprocess.Popen(
        list(command), env=dict(environment), cwd=ROOT, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
        errors += f"\nkilled after {timeout} s"
    return subprocess.CompletedProcess(list(command), process.returncode, output, errors)


def launch_two(script: str, *arguments: str, timeout: float = 400, **environment: str) -> None:
    """Run a script of this folder in two processes, as a user would; all its output is shown if it fails."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    settings = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = launch([*command, str(ROOT / "tests" / script), *arguments], os.environ | settings | environment, timeout)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
