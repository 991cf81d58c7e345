"""A training that kills itself, as an operator's ``kill -9`` would.

Run again with the moment "never", it goes on and writes what came out. Moments: "never", "step" (in the middle of a step),
"saving" (while a checkpoint's own files are being written), "state" (while ``trainer_state.json`` is).
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from alora_trainer import ALoRAConfig, ALoRATrainer
from alora_trainer.trainer.resume import checkpoints
from tests.process_cases import build, logged, reference_map, trained
from tests.tiny_training import move_factors, quiet_arguments, token_rows

STAGES: dict[str, dict[str, Any]] = {
    "record": {"record": "path", "fold_every": 2},
    "protect": {"lam": 0.5},
    "budget": {"budget": 0.002, "lam": 0.01, "probe_steps": 1},
}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Killed(ALoRATrainer):
    """Dies at the chosen moment of the fourth of six steps."""

    moment = "never"

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if self.moment == "step" and self.state.global_step == 3:
            die()
        return loss

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.moment == "saving" and self.state.global_step == 4:
            (Path(output_dir) / "scheduler.pt").write_bytes(b"PK\x03\x04 half of a file")
            die()

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.moment == "state" and self.state.global_step == 4:
            (Path(output_dir) / "trainer_state.json").write_text('{"global_step": 4, "max_st')
            die()


def trainer(stage: str, folder: Path) -> Killed:
    model = build()
    ours: dict[str, Any] = {"alora": ALoRAConfig(**STAGES[stage])}
    if stage != "record":
        ours["importance"] = reference_map(model)
        move_factors(model, 0.05)
    if stage == "budget":
        ours["probe_dataset"] = token_rows(items=5, seed=11)
    args = quiet_arguments(
        str(folder), max_steps=6, save_strategy="steps", save_steps=1, gradient_accumulation_steps=2, learning_rate=0.02,
        lr_scheduler_type="linear",
    )  # fmt: skip
    return Killed(model, args, train_dataset=token_rows(items=32), **ours)


def run(stage: str, folder: Path, moment: str) -> None:
    torch.set_num_threads(1)
    one = trainer(stage, folder)
    one.moment = moment
    one.train(resume_from_checkpoint=True if checkpoints(folder) else None)
    outcome = trained(one) | {f"omega {name}": omega for name, omega in (one.importance or {}).items()}
    save_file({name: tensor.detach().contiguous() for name, tensor in outcome.items()}, folder / "outcome.safetensors")
    (folder / "log.json").write_text(json.dumps(logged(one)))
