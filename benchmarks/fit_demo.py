"""What `alora fit demo` takes on this machine, and what it promises.

    python benchmarks/fit_demo.py [--work_dir DIR]

Runs the command once, in a process of its own and a folder that must be new, and writes results/studies/fit-demo.json.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from alora_trainer.basics.files import read_json, write_json
from alora_trainer.experiment.report.results import environment, read_results

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work_dir", type=Path, help="default: a temporary folder")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "studies" / "fit-demo.json")
    options = parser.parse_args()
    folder = options.work_dir or Path(tempfile.mkdtemp(prefix="fit-demo-"))
    command = [sys.executable, "-m", "alora_trainer", "fit", "demo", "--output_dir", str(folder / "fitted")]
    start = time.monotonic()
    done = subprocess.run(command, check=False)
    seconds = time.monotonic() - start
    if done.returncode not in (0, 3):  # kept, or not kept
        raise SystemExit(done.returncode)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    promise = read_json(folder / "fitted" / "promise" / "promise.json")
    (results,) = read_results(folder / "fitted" / "run" / "results.json")
    accuracy = {name: next(iter(entry.tasks.values())).acc for name, entry in results.methods.items()}
    assert promise is not None
    report = {
        "schema": 1,
        "command": "python benchmarks/fit_demo.py",
        "environment": environment() | {"processors": os.cpu_count()},
        "wall_seconds": seconds,
        "core_seconds": used.ru_utime + used.ru_stime,
        "accuracy": accuracy,
        "promise": promise["promise"],
    }
    write_json(options.output, report)
    print(f"{seconds:.0f} s, written: {options.output}")


if __name__ == "__main__":
    main()
