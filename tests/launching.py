"""Commands that a test launches, and ends with all that they started if they hang."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def launch(
    command: Sequence[str], environment: Mapping[str, str], timeout: float = 200
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
