"""Ctrl-C that reaches one of two processes alone: both stop after the same step, with a checkpoint, and go on."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from alora_trainer.experiment.run.train import train
from tests.process_cases import protected_trainer


class Interrupts(TrainerCallback):
    """The second process is told while step 2 is made."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1 and os.environ["RANK"] == "1":
            signal.raise_signal(signal.SIGINT)


def main(folder: Path) -> None:
    settings: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 100}
    trainer = protected_trainer("coupled", folder, batch=2, **settings)
    trainer.add_callback(Interrupts)
    try:
        train(trainer)
    except KeyboardInterrupt:
        assert trainer.state.global_step == 2
    else:
        raise AssertionError("nobody was told")
    again = protected_trainer("coupled", folder, batch=2, **settings)
    assert train(again)["steps"] == 4


if __name__ == "__main__":
    main(Path(sys.argv[1]))
