"""What a small recipe's trainings look like, step by step, however a batch is divided.

``python -m tests.trainer.invariants.trajectories`` makes `trajectories.json` anew, from the whole batch in one
process. Commit it only if the numbers were meant to change, and say why.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from tests.tiny_recipe import write_all

COMMITTED = Path(__file__).with_name("trajectories.json")
# Within the first epoch: at its end, the data loader of several processes repeats sequences to have one for each of them.
STEPS = 4
# Of one line of the Trainer's log. The gradient's norm is taken before clipping, the coupled penalty in it.
KEPT = ("loss", "ce_loss", "penalty", "grad_norm", "drift", "lam")
APPLICATIONS = ("coupled", "decoupled")


def commands(recipe: Path, folder: Path, batch: int, accumulation: int) -> list[list[str]]:
    """The command lines: stage A, then stage B with either application of the penalty."""
    settings: dict[str, Any] = {"alora.lam": 0.02}
    for section in ("record", "tune"):
        # Plain gradient descent: Adam's first steps magnify the last bit of a gradient to a whole step.
        own = {
            "optim": "sgd", "learning_rate": 0.3, "max_steps": STEPS, "max_grad_norm": 0.2, "logging_steps": 1,
            "per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "save_strategy": "no",
        }  # fmt: skip
        settings |= {f"{section}.{key}": value for key, value in own.items()}
    overrides = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    record = ["record", str(recipe), "--output_dir", str(folder / "record"), *overrides]
    recorded = ["--importance", str(folder / "record" / "record" / "map")]
    tune = ["tune", str(recipe), "--method", "alora", *recorded, *overrides]
    return [
        record,
        *([*tune, "--output_dir", str(folder / kind), "--alora.application", kind] for kind in APPLICATIONS),
    ]


def run(recipe: Path, folder: Path, batch: int, accumulation: int) -> None:
    """All of it through the command line's own entry."""
    from alora_trainer.cli.command_line import main

    for command in commands(recipe, folder, batch, accumulation):
        code = main(command)
        assert code == 0, command


def trajectory(folder: Path) -> dict[str, Any]:
    """What the commands have left behind: each training's log, and the norm of every layer's importance."""
    found: dict[str, Any] = {}
    for name, part in (("record", "record"), *((kind, "alora") for kind in APPLICATIONS)):
        state = json.loads((folder / name / part / "checkpoints" / "trainer_state.json").read_text())
        logged = [line for line in state["log_history"] if "loss" in line]
        found[name] = [{key: line[key] for key in KEPT if key in line} for line in logged]
    layers = json.loads((folder / "record" / "record" / "map" / "layer_importance.json").read_text())
    # The query's importance is a millionth of the value's in this model, and its digits are noise.
    return {**found, "importance": {name: layer["norm"] for name, layer in layers.items() if "v_proj" in name}}


def make() -> None:
    """Write the committed file."""
    with tempfile.TemporaryDirectory() as folder:
        run(write_all(Path(folder) / "data"), Path(folder) / "run", 4, 1)
        found = trajectory(Path(folder) / "run")
    COMMITTED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    make()
