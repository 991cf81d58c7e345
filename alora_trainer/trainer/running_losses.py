"""The losses of a training that is under way, through checkpoints: what is logged after a resume covers all of it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from alora_trainer.basics.files import read_json, write_json

logger = logging.getLogger(__name__)

LOSSES_FILE = "running_losses.json"


class RunningLosses:
    """The Trainer's own sums of losses, which it begins anew with every process.

    Args:
        trainer: a `transformers.Trainer`, whose sums are kept and restored.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._first_step: int | None = None

    def begin(self) -> None:
        """A training begins in this process, at its first step or from a checkpoint."""
        self._first_step = None

    def save(self, folder: str | Path, further: Mapping[str, Any]) -> None:
        """Write the sums and `further` ones into a checkpoint. All processes call it together; one writes."""
        trainer = self._trainer
        unlogged = trainer.accelerator.gather(trainer._tr_loss.reshape(1)).mean().item()
        # Earlier versions of transformers (5.17 is one) counted from the first step of all, wherever it began.
        begun = getattr(trainer, "_initial_global_step", 0)
        state = {
            "first_step": begun if self._first_step is None else self._first_step,
            "logged": trainer._total_loss_scalar,
            "unlogged": unlogged,
            "logged_at": trainer._globalstep_last_logged,
        }
        if trainer.args.should_save:
            write_json(Path(folder) / LOSSES_FILE, {**state, **further})

    def load(self, folder: str | Path) -> Mapping[str, Any]:
        """Go on with what `save` wrote, which is returned; empty where the checkpoint has none of it."""
        path = Path(folder) / LOSSES_FILE
        state = read_json(path)
        if not isinstance(state, Mapping) or not {"first_step", "logged", "unlogged", "logged_at"} <= set(state):
            logger.warning(
                f"{folder} does not say what the losses before it were: those logged from here on leave them out"
            )
            return {}
        trainer = self._trainer
        self._first_step = int(state["first_step"])
        trainer._total_loss_scalar = number_from(state["logged"])
        trainer._tr_loss = torch.tensor(number_from(state["unlogged"]), device=trainer.args.device)
        trainer._globalstep_last_logged = int(state["logged_at"])
        return state

    def mean(self, of_this_process: float) -> float:
        """The mean loss of the whole training at its end.

        Args:
            of_this_process: what the Trainer says of the steps since it was resumed (all of them, if it was not).
        """
        if self._first_step is None:
            return of_this_process
        steps = self._trainer.state.global_step - self._first_step
        return float(self._trainer._total_loss_scalar / max(steps, 0.001))

    def corrected(self, outcome: Any) -> Any:
        """What the Trainer's ``train`` returned, with the loss that it has logged as `mean` says."""
        return outcome if self._first_step is None else outcome._replace(training_loss=outcome.metrics["train_loss"])


def number_from(value: float | None) -> float:
    """A number as `write_json` keeps it: null stands for what was not finite."""
    return math.nan if value is None else float(value)
