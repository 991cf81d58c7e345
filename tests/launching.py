"""Commands that a test launches, and ends with all that they started if they hang."""

from __future__ import annotations

import gc
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Some of them are read while libraries are imported, so that the process that others are forked from has them, too.
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # pyarrow's, and the only thread of what is forked
}


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
    """Run a script of this folder, or a module, in two processes of one group; all their output is shown if one fails.

    They are told of each other as torchrun tells its processes, but are forked from one that has imported the libraries, for
    which each of them would take ten seconds. (tests/trainer/test_engines_page.py and tests/cli/test_eval_command.py are
    launched by torchrun itself.)

    Where a process is ended by a signal that is not ours, both get one more try, and a warning says so: on a busy machine
    PyTorch 2.13's gloo was once seen to abort ("double free or corruption") in a gathering of a sharded tensor. Nothing here
    is native code, so that no fault of this package ends so; one that Python tells of fails at once.
    """
    said, died = _run_two(script, arguments, timeout, environment)
    if died:
        warnings.warn(f"{script}: a process died by a signal, and both are tried again\n{said}", stacklevel=2)
        said, _ = _run_two(script, arguments, timeout, environment)
    assert not said, said


def _run_two(script: str, arguments: Sequence[str], timeout: float, environment: Mapping[str, str]) -> tuple[str, bool]:
    """What went wrong with all that was said, empty for nothing; and whether a process died by a signal that is not ours."""
    context = prepared()
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / str(rank) for rank in range(2)]
        processes = [
            context.Process(
                target=_run,
                args=(script, arguments, group | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                      | SETTINGS | dict(environment), str(outputs[rank])),
            )
            for rank in range(2)
        ]  # fmt: skip
        for process in processes:
            process.start()
        end = time.monotonic() + timeout
        # One that failed leaves the other waiting for it.
        while any(process.is_alive() for process in processes) and time.monotonic() < end:
            if any(process.exitcode for process in processes):
                break
            time.sleep(0.05)
        late = [process for process in processes if process.is_alive()]
        for process in late:
            process.kill()
        for process in processes:
            process.join()
        told = "\n".join(path.read_text(errors="replace")[-5000:] for path in outputs if path.exists())
        codes = [process.exitcode for process in processes]
    died = any((process.exitcode or 0) < 0 for process in processes if process not in late)
    return ("" if codes == [0, 0] else f"{script}: exit codes {codes}, {len(late)} killed\n{told}"), died


def prepared() -> multiprocessing.context.ForkServerContext:
    """Where processes come from: one without threads, which has imported what `tests.prepared` does."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.prepared"])
    before = {name: os.environ.get(name) for name in SETTINGS}
    os.environ.update(SETTINGS)
    try:
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return context


def _run(script: str, arguments: Sequence[str], environment: Mapping[str, str], output: str) -> None:
    """In a forked process: become `python script arguments` or `python -m script arguments`; what it says goes into a file."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    gc.unfreeze()
    if script.endswith(".py"):
        path = str(ROOT / "tests" / script)
        sys.argv = [path, *arguments]
        runpy.run_path(path, run_name="__main__")
    else:
        sys.argv = [script, *arguments]
        runpy.run_module(script, run_name="__main__", alter_sys=True)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
