"""Lambda over one training: as given, found (`lam: auto`), or steered so that a budget on general loss is kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from alora_trainer.errors import ALoRAError
from alora_trainer.penalty.quadratic import QuadraticPenalty
from alora_trainer.penalty.strength.budget import BudgetController, Rise
from alora_trainer.penalty.strength.final_pull import FinalPull
from alora_trainer.penalty.strength.prediction import RisePrediction
from alora_trainer.penalty.strength.probe import Probe
from alora_trainer.penalty.strength.schedule import GradientBalance, look_is_due, schedule_factor
from alora_trainer.trainer.config import ALoRAConfig
from alora_trainer.weights.trained_weight import Matrices, TrainedWeight

logger = logging.getLogger(__name__)


class Steering:
    """Says what lambda is at every optimizer step of one training.

    Args:
        config: `lam` and its schedule, the budget, and how often the probe is evaluated.
        penalty: whose gradients `auto` compares with the data's, and which keeps the budget at the end.
        weights: those that it holds.
        steps: optimizer steps of the whole training.
        probe: general text to watch; needed for a budget.
        predicts: the penalty's R is a curvature by token: it predicts the rise of every step, and probes calibrate it.

    Attributes:
        prediction: of the rise of general loss; None unless `predicts`.
    """

    def __init__(
        self,
        config: ALoRAConfig,
        penalty: QuadraticPenalty,
        weights: Sequence[TrainedWeight],
        *,
        steps: int,
        probe: Probe | None = None,
        predicts: bool = False,
    ) -> None:
        self._config = config
        self._penalty = penalty
        self._steps = steps
        self._completed = 0
        self._probe = probe
        self.prediction = RisePrediction() if predicts else None
        self._finished = False
        self._controller: BudgetController | None = None
        self._balance: GradientBalance | None = None
        self._unscheduled = 0.0
        if isinstance(config.lam, str):
            self._balance = GradientBalance(weights, steps, by_movement=config.application == "decoupled")
        else:
            assert config.lam is not None  # as `meant_for` has it
            self._set(config.lam)

    def _set(self, lam: float) -> None:
        """Lambda before the schedule."""
        if self._config.budget is not None and self._controller is None:
            self._controller = BudgetController(self._config.budget, lam)
        self._unscheduled = lam

    @property
    def lam(self) -> float:
        """Lambda of the optimizer step that is next."""
        base = self._controller.lam if self._controller is not None else self._unscheduled
        config = self._config
        return base * schedule_factor(config.lam_schedule, config.lam_end_factor, self._completed, self._steps)

    def begin(self, model: torch.nn.Module, accelerator: Any, *, completed: int, resumes: bool) -> None:
        """Before the first step of this process.

        Args:
            completed: optimizer steps that other processes have made before.
            resumes: `load_state_dict` is called next; else the probe is evaluated at the weights as they are.
        """
        self._completed = completed
        if self._probe is not None and not resumes:
            self._probe.set_start(self._probe.evaluate(model, accelerator))
            if self.prediction is not None:
                self.prediction.start = self._predicted()

    def _predicted(self) -> float:
        """The predicted rise at the present weights, in nats a token."""
        return float(self._penalty.evaluate().literal) / 2

    @property
    def watches_gradients(self) -> bool:
        """Whether `before_step` must be called: `auto` still looks for lambda."""
        return self._balance is not None and self._balance.lam is None

    def before_step(self, gradients: Mapping[str, Matrices]) -> None:
        """The data loss's gradients of a step that is about to be made, by weight name: unclipped, unscaled."""
        if self._balance is not None:
            self._balance.before_step(gradients)

    def add_prediction(self, predicted: torch.Tensor | None) -> None:
        """Take in the rise that the penalty of the step that has been made predicts (a scalar); None for a step without one."""
        if predicted is not None and self._controller is not None and self.prediction is not None:
            self.prediction.add(float(predicted))

    def after_step(self, learning_rates: Mapping[int, float], *, skipped: bool) -> None:
        """The step has been made at these learning rates by ``id(parameter)``, or the optimizer passed over it."""
        if self._balance is not None:
            self._balance.after_step(learning_rates, skipped=skipped)

    def end_of_step(
        self, model: torch.nn.Module, accelerator: Any, completed: int, *, last: bool = False
    ) -> dict[str, float]:
        """Find lambda for the next step; what to log, if the probe was evaluated.

        Args:
            completed: optimizer steps so far.
            last: the training ends here.
        """
        self._completed = completed
        if self._balance is not None and self._balance.lam is None and completed >= self._balance.free_steps:
            self._settle(self._balance)
        logs: dict[str, float] = {}
        if self._probe is not None and (last or self._probe_is_due(completed)):
            logs = self._evaluate_probe(self._probe, model, accelerator, last)
        if not last:
            self._follow_prediction()
        return logs

    def _probe_is_due(self, completed: int) -> bool:
        calibrates = self.prediction is not None and self._controller is not None
        return look_is_due(completed, self._steps, self._config.probe_steps, calibrates=calibrates)

    def _settle(self, balance: GradientBalance) -> None:
        self._penalty.lam = 1.0
        lam = balance.settle(self._penalty.evaluate().gradients)
        if lam is not None:
            logger.info(f"lam='auto' is {lam:.4g}, where data and penalty pull equally after step {self._completed}")
            self._set(lam)

    def _evaluate_probe(self, probe: Probe, model: torch.nn.Module, accelerator: Any, last: bool) -> dict[str, float]:
        sums = probe.evaluate(model, accelerator)
        rise = probe.rise(sums)
        logs = {"probe_loss": probe.loss(sums), "probe_rise": rise.value, "probe_rise_error": rise.error}
        if self._controller is not None and last:
            self._finished = True
            final = FinalPull(
                self._penalty, self._controller.budget, self._moved if self.prediction is not None else None
            )
            logs |= final.keep_budget(rise, lambda: probe.rise(probe.evaluate(model, accelerator)))
            rise = Rise(logs["probe_rise"], logs["probe_rise_error"])
        if self.prediction is not None:
            logs |= self.prediction.calibrate(self._predicted(), rise, probe.start_loss)
        if self._controller is None:
            return logs
        if not last and (self.prediction is None or self.prediction.bound is None):
            self._controller.update(rise)
        return logs | {"lam": self.lam}

    def _moved(self) -> float:
        assert self.prediction is not None
        return self._predicted() - self.prediction.start

    def _follow_prediction(self) -> None:
        """What a calibrated prediction says of the last step, as a probe would."""
        bound = self.prediction.bound if self.prediction is not None else None
        if self._controller is not None and bound is not None:
            self._controller.follow(*bound)

    def finish(self, model: torch.nn.Module, accelerator: Any) -> dict[str, float]:
        """As the last `end_of_step`, where the training was ended without one being said to be the last."""
        if self._finished or self._controller is None or self._probe is None:
            return {}
        return self._evaluate_probe(self._probe, model, accelerator, last=True)

    @property
    def has_state(self) -> bool:
        """Whether lambda depends on what happened before, so that a checkpoint must keep it."""
        return self._balance is not None or self._probe is not None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs to go on exactly, as plain data."""
        return {
            "balance": self._balance.state_dict() if self._balance is not None else None,
            "controller": self._controller.state_dict() if self._controller is not None else None,
            "probe_start": self._probe.start if self._probe is not None else None,
            "prediction": self.prediction.state_dict() if self.prediction is not None else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave.

        Raises:
            ALoRAError: it is damaged, or of a training with another probe.
        """
        if self._balance is not None and state.get("balance") is not None:
            self._balance.load_state_dict(state["balance"])
            if self._balance.lam is not None:
                self._set(self._balance.lam)
        if self._config.budget is not None and state.get("controller") is not None:
            self._controller = BudgetController.from_state(self._config.budget, state["controller"])
        if self._probe is not None:
            if state.get("probe_start") is None:
                raise ALoRAError("the checkpoint was made without a probe_dataset: resume as it was, or start again")
            self._probe.set_start(state["probe_start"])
        if self.prediction is not None and state.get("prediction") is not None:
            self.prediction.load_state_dict(state["prediction"])
