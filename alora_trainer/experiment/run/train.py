"""One training to its end, going on where it was stopped, with what it cost and its log."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState, PrinterCallback, ProgressCallback

from alora_trainer.basics.cost_meter import Cost, Meter
from alora_trainer.basics.heartbeat import Heartbeat, bars_shown
from alora_trainer.errors import Diverged
from alora_trainer.experiment.run.interruption import stopping_whole
from alora_trainer.experiment.run.log_columns import columns
from alora_trainer.trainer.resume import last_good_checkpoint, last_whole_checkpoint, trainer_state
from alora_trainer.trainer.steps import making_steps
from alora_trainer.weights.trained_weight import first_not_finite

logger = logging.getLogger(__name__)

# What the progress bar shows of the log.
_SHOWN = ("loss", "ce_loss", "penalty", "learning_rate")


def train(trainer: Trainer) -> dict[str, Any]:
    """Train to the end, from the last whole checkpoint in the trainer's output folder if there is one.

    Returns:
        seconds and peak_bytes of the whole training (`Meter` says what is counted), over all the times that it was begun;
        loss, the mean over all of it, too; steps; history, the log as columns (see `log_columns.columns`).

    Raises:
        ALoRAError: the training makes no step.
        KeyboardInterrupt: it was interrupted; a checkpoint of where it was is in the trainer's folder.
        Diverged: what was trained is not finite in the end, with which a plain trainer ends as if all were well.
    """
    folder = Path(trainer.args.output_dir)
    checkpoint = last_whole_checkpoint(folder)
    with Meter() as meter:
        keeper = _CostKeeper(meter, _cost_in(checkpoint))
        trainer.add_callback(keeper)
        for printing in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(printing)
        trainer.add_callback(_Progress if bars_shown() and not trainer.args.disable_tqdm else _Lines())
        if checkpoint is not None:
            logger.info(f"going on from {checkpoint.name}")
        with making_steps(trainer), stopping_whole(trainer):
            outcome = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        trainer.save_state()
    parameters = {name: [p.detach()] for name, p in trainer.model.named_parameters() if p.requires_grad}
    broken = first_not_finite(parameters)
    if broken is not None:
        raise Diverged("the parameter", broken).at(outcome.global_step, last_good_checkpoint(folder))
    cost = keeper.cost
    return {
        "seconds": round(cost.seconds, 3),
        "peak_bytes": cost.peak_bytes,
        "loss": outcome.training_loss,
        "steps": outcome.global_step,
        "history": columns(trainer.state.log_history),
    }


def _cost_in(checkpoint: Path | None) -> Cost:
    state = trainer_state(checkpoint) if checkpoint is not None else None
    saved = (state or {}).get("stateful_callbacks", {}).get(_CostKeeper.__name__)
    return Cost(**saved["attributes"]) if saved else Cost()


class _CostKeeper(TrainerCallback, ExportableState):
    """Keeps the cost so far in each checkpoint, so that a training that was stopped does not look cheaper than it was."""

    def __init__(self, meter: Meter, before: Cost) -> None:
        self._meter = meter
        self._before = before

    @property
    def cost(self) -> Cost:
        return self._before + self._meter.cost

    def state(self) -> dict[str, Any]:
        cost = self.cost
        return {"args": {}, "attributes": {"seconds": cost.seconds, "peak_bytes": cost.peak_bytes}}


class _Progress(ProgressCallback):
    """The Trainer's own progress bar with the losses on it, instead of a line of text for every log entry."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and self.training_bar is not None and logs:
            shown = {key: f"{float(logs[key]):.4g}" for key in _SHOWN if key in logs}
            if shown:
                self.training_bar.set_postfix(shown, refresh=False)


class _Lines(TrainerCallback):
    """Where there is no progress bar: a line at least every half minute, in a file or a pipe as on a terminal."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._heartbeat = Heartbeat("step", state.max_steps, logger, quiet=not state.is_world_process_zero)
        self._losses: dict[str, float] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self._losses |= {key: float(logs[key]) for key in _SHOWN if key in (logs or {})}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._heartbeat.beat(state.global_step, ", ".join(f"{key} {value:.4g}" for key, value in self._losses.items()))
