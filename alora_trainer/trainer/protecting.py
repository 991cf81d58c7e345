"""What holds the important weights during one training: the penalty, lambda over time, and how both are applied.

The trainer's hooks call it, in this order within an optimizer step:

    begin_step            lambda of this step, before the last micro-batch's forward pass
    loss_term             the coupled penalty, to be added to the last micro-batch's loss
    before_step           the data's gradients, where `lam: auto` wants to see them
    after_optimizer_step  the decoupled penalty's own update
    end_of_step           lambda for the next step: `auto`, or the probe and the budget
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from alora_trainer.artefact.importance_map import ImportanceMap
from alora_trainer.errors import ALoRAError
from alora_trainer.penalty.anchor import anchor_of
from alora_trainer.penalty.loss_term import penalty_loss
from alora_trainer.penalty.quadratic import PenaltyStep, QuadraticPenalty
from alora_trainer.penalty.strength.budget import BudgetController
from alora_trainer.penalty.strength.final_pull import FinalPull
from alora_trainer.penalty.strength.probe import Probe
from alora_trainer.penalty.strength.schedule import GradientBalance, schedule_factor
from alora_trainer.trainer.config import ALoRAConfig
from alora_trainer.weights.trained_weight import Matrices, TrainedWeight

logger = logging.getLogger(__name__)


class Protection:
    """The penalty of one training.

    Args:
        weights: all adapted weights.
        importance: of these (`ImportanceMap.check_model` has been called).
        config: the settings.
        steps: optimizer steps of the whole training.
        probe: general text to watch; needed for a budget.

    Attributes:
        weights: those of the adapted weights that are held.
        penalty: the penalty on them.
        step: the coupled penalty of the present optimizer step, once `loss_term` was called.
        value: the penalty of the last step, lambda included; None where there was none.
    """

    def __init__(
        self,
        weights: Sequence[TrainedWeight],
        importance: ImportanceMap,
        config: ALoRAConfig,
        *,
        steps: int,
        probe: Probe | None = None,
    ) -> None:
        if config.missing == "uniform":
            importance = importance.with_uniform(weights)
        self.weights = [weight for weight in weights if weight.name in importance]
        if not self.weights:
            raise ALoRAError("the importance map has none of the adapted weights, so that nothing would be held")
        self._config = config
        self._steps = steps
        self._completed = 0
        self._base_lam = 0.0
        self._probe = probe
        self._decoupled = config.application == "decoupled"
        self._balance = (
            GradientBalance(self.weights, steps, by_movement=self._decoupled) if config.lam == "auto" else None
        )
        self._controller: BudgetController | None = None
        self._finished = False
        self.step: PenaltyStep | None = None
        self.value: torch.Tensor | None = None
        self.penalty = QuadraticPenalty(
            self.weights,
            importance,
            lam=0.0,
            layer_weights=config.layer_weights,
            normalize=config.normalize,
            backend=config.backend,
            streamed=config.storage_device == "cpu",
            anchors={
                weight.name: anchor_of(
                    weight, importance, start=config.start, fresh_base=config.fresh_base, anchor=config.anchor
                )
                for weight in self.weights
            },
        )
        if isinstance(config.lam, (int, float)):
            self._set_lam(float(config.lam))

    # ---- lambda ----

    def _set_lam(self, lam: float) -> None:
        """Lambda before the schedule."""
        if self._config.budget is not None and self._controller is None:
            self._controller = BudgetController(self._config.budget, lam)
        self._base_lam = lam

    @property
    def lam(self) -> float:
        """Lambda of the optimizer step that is next."""
        base = self._controller.lam if self._controller is not None else self._base_lam
        config = self._config
        return base * schedule_factor(config.lam_schedule, config.lam_end_factor, self._completed, self._steps)

    # ---- the moments of an optimizer step ----

    def begin(
        self, model: torch.nn.Module, accelerator: Any, *, completed: int, state: Mapping[str, Any] | None
    ) -> None:
        """Before the first step of this process, with `state_dict`'s result from a checkpoint if there is one."""
        self._completed = completed
        if state is not None:
            self._load_state_dict(state)
        elif self._probe is not None:
            self._probe.set_start(self._probe.evaluate(model, accelerator))

    def begin_step(self) -> None:
        """Before the last micro-batch's forward pass, beside which a streamed penalty is computed."""
        self.step = self.value = None
        self.penalty.lam = self.lam
        if not self._decoupled and self.penalty.lam > 0:
            self.penalty.begin()

    def loss_term(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
        """What a coupled penalty adds to the loss of one optimizer step; None where there is nothing to add."""
        if self._decoupled or self.penalty.lam == 0:
            return None
        self.step = self.penalty.evaluate()
        self.value = self.step.value
        return penalty_loss(self.weights, self.step, dtype, device)

    @property
    def watches_gradients(self) -> bool:
        """Whether `before_step` must be called with the data's gradients."""
        return self._balance is not None and self._balance.lam is None

    def before_step(self, gradients: Mapping[str, Matrices]) -> None:
        """The data loss's gradients of A and B by weight name, unclipped and unscaled, before the optimizer uses them."""
        if self._balance is not None:
            self._balance.before_step(gradients)

    def after_optimizer_step(self, learning_rates: Mapping[int, float], *, skipped: bool) -> None:
        """The decoupled update, unless the optimizer did not move either.

        Args:
            learning_rates: those of the step by ``id(parameter)``.
            skipped: the optimizer passed over the step (fp16 overflow).
        """
        if self._balance is not None:
            self._balance.after_step(learning_rates, skipped=skipped)
        if self._decoupled and not skipped and self.penalty.lam > 0:
            self.value = self.penalty.pull(learning_rates)

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
        if self._probe is None or not (last or completed % self._config.probe_steps == 0):
            return {}
        return self._evaluate_probe(self._probe, model, accelerator, last)

    def _settle(self, balance: GradientBalance) -> None:
        self.penalty.lam = 1.0
        lam = balance.settle(self.penalty.evaluate().gradients)
        if lam is not None:
            logger.info(f"lam='auto' is {lam:.4g}, where data and penalty pull equally after {self._completed} steps")
            self._set_lam(lam)

    def _evaluate_probe(self, probe: Probe, model: torch.nn.Module, accelerator: Any, last: bool) -> dict[str, float]:
        sums = probe.evaluate(model, accelerator)
        rise = probe.rise(sums)
        logs = {"probe_loss": probe.loss(sums), "probe_rise": rise.value, "probe_rise_error": rise.error}
        if self._controller is None:
            return logs
        if last:
            self._finished = True
            final = FinalPull(self.penalty, self._controller.budget)
            logs |= final.keep_budget(rise, lambda: probe.rise(probe.evaluate(model, accelerator)))
        else:
            self._controller.update(rise)
        return logs | {"lam": self.lam}

    def finish(self, model: torch.nn.Module, accelerator: Any) -> dict[str, float]:
        """As the last `end_of_step`, where the training was ended without one being said to be the last."""
        if self._finished or self._controller is None or self._probe is None:
            return {}
        return self._evaluate_probe(self._probe, model, accelerator, last=True)

    # ---- checkpoints ----

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
        }

    def _load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self._balance is not None and state.get("balance") is not None:
            self._balance.load_state_dict(state["balance"])
            if self._balance.lam is not None:
                self._set_lam(self._balance.lam)
        if self._config.budget is not None and state.get("controller") is not None:
            self._controller = BudgetController.from_state(self._config.budget, state["controller"])
        if self._probe is not None:
            if state.get("probe_start") is None:
                raise ALoRAError("the checkpoint was made without a probe_dataset: resume as it was, or start again")
            self._probe.set_start(state["probe_start"])
