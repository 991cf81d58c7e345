"""Stage B as a part of a training: what a map says is important is held while the trainer trains."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from transformers import Trainer

from alora_trainer.artefact.importance_map import ImportanceMap
from alora_trainer.errors import ALoRAError
from alora_trainer.importance.base_model import check_whole_base
from alora_trainer.penalty.anchor import anchor_of
from alora_trainer.penalty.loss_term import penalty_loss
from alora_trainer.penalty.quadratic import PenaltyStep, PenaltyValue, QuadraticPenalty
from alora_trainer.penalty.strength.probe import Probe
from alora_trainer.trainer.adapters import check_recorded_start
from alora_trainer.trainer.checkpoint import load_loss_parts, load_steering, save_loss_parts, save_steering
from alora_trainer.trainer.config import ALoRAConfig
from alora_trainer.trainer.loss_parts import LossParts
from alora_trainer.trainer.part import Part
from alora_trainer.trainer.steering import Steering
from alora_trainer.weights.reference import FullReference, Reference
from alora_trainer.weights.sharding import gathered
from alora_trainer.weights.start import StartFrom
from alora_trainer.weights.trained_weight import (
    Matrices,
    TrainedWeight,
    check_optimized,
    learning_rates,
    unprotected_parameters,
)

logger = logging.getLogger(__name__)


def protecting_part(
    importance: ImportanceMap | None, config: ALoRAConfig, probe_dataset: Any, *, batch_size: int
) -> Protecting | None:
    """The part that holds what a map says is important; None where there is no map.

    Args:
        importance: the map, if any.
        config: the settings.
        probe_dataset: rows of general text with ``input_ids``, to be watched; None for none.
        batch_size: of its evaluation.

    Raises:
        ALoRAError: a budget without general text to keep it on, or general text that nothing would watch.
    """
    if importance is None:
        if probe_dataset is not None:
            raise ALoRAError("a probe_dataset is watched while protecting: pass importance=..., too")
        return None
    if config.budget is not None and probe_dataset is None:
        raise ALoRAError(f"budget={config.budget} needs a probe_dataset: a little general text to keep it on")
    probe = Probe(probe_dataset, batch_size) if probe_dataset is not None else None
    return Protecting(importance, config, probe)


class Protecting(Part):
    """Holds the important weights: the penalty (arXiv 2501.13669 eq. 16-18), how it is applied, and lambda over time.

    Args:
        importance: of the weights that train (`ImportanceMap.check_model` has been called).
        config: the settings.
        probe: general text to watch; needed for a budget.

    Attributes:
        weights: those of the trained weights that are held, once the training has begun.
        penalty: the penalty on them, likewise.
        value: the penalty of the last step, lambda included (a detached scalar); None where there was none.
        predicted: the rise of general loss that it predicts, in nats a token, from where the penalty pulls to (likewise); None
            also where the map is no curvature by token.
    """

    needs_weights = True
    weights: list[TrainedWeight]
    penalty: QuadraticPenalty

    def __init__(self, importance: ImportanceMap, config: ALoRAConfig, probe: Probe | None = None) -> None:
        self._importance = importance
        self._config = config.meant_for(importance)
        self._probe = probe
        self._decoupled = config.application == "decoupled"
        self._base: dict[str, Reference | FullReference] = {}  # of whole weights, where these are held at the base
        self._step: PenaltyStep | None = None
        self._predicts = importance.info.is_curvature_by_token
        self.value: torch.Tensor | None = None
        self.predicted: torch.Tensor | None = None

    def before_training(self, trainer: Trainer, weights: Sequence[TrainedWeight], *, resumes: bool) -> None:
        """Keep whole weights that are to be held at the base, where they are now: later, a checkpoint is in their place.

        Raises:
            ALoRAError: they are not those that the map was measured at; the adapter is a fresh one, and the training is to go
                on with the map's own.
        """
        goes_on = self._config.start_from is StartFrom.RECORDED and self._config.anchor == "reference"
        if goes_on and not resumes:
            with _whole(weights):
                check_recorded_start(weights, self._importance)
        if self._importance.at_base and self._config.full_parameters and not self._base:
            held = [weight for weight in weights if weight.name in self._importance]
            if any(parameter.is_meta for weight in held for parameter in weight.parameters):
                raise ALoRAError(
                    "whole weights that are held at the base weights must be in memory before the training begins, and "
                    "cpu_ram_efficient_loading leaves them out: set it to False in fsdp_config"
                )
            check_whole_base(self._importance, held)
            self._base = {weight.name: anchor_of(weight, self._importance) for weight in held}

    def prepare(self, weights: Sequence[TrainedWeight], *, steps: int) -> None:
        """Make the penalty on those of the trained `weights` that have an importance, for a training of so many steps.

        Raises:
            ALoRAError: there is none.
        """
        importance, config = self._importance, self._config
        if config.missing == "uniform":
            importance = importance.with_uniform(weights)
        self.weights = [weight for weight in weights if weight.name in importance]
        if not self.weights:
            raise ALoRAError("the importance map has none of the adapted weights, so that nothing would be held")
        assert config.layer_weights is not None and config.anchor is not None  # as `meant_for` has them
        self.penalty = QuadraticPenalty(
            self.weights,
            importance,
            lam=0.0,
            layer_weights=config.layer_weights,
            normalize=config.normalize,
            backend=config.backend,
            streamed=config.storage_device == "cpu",
            pulls=config.application == "decoupled" or config.budget is not None,
            anchors={
                weight.name: self._base.get(weight.name)
                or anchor_of(weight, importance, start=config.start_from, anchor=config.anchor)
                for weight in self.weights
            },
        )
        self._steering = Steering(
            config, self.penalty, self.weights, steps=steps, probe=self._probe, predicts=self._predicts
        )
        self._losses = LossParts()
        self._step = self.value = self.predicted = None

    def begin(self, trainer: Trainer, weights: Sequence[TrainedWeight], *, resumes: bool) -> None:
        self._trainer: Any = trainer
        with _whole(weights):
            self.prepare(weights, steps=trainer.state.max_steps)
        if not trainer.is_deepspeed_enabled:  # whose optimizer has flat copies of the parameters
            check_optimized(self.weights, trainer.optimizer)
        completed = trainer.state.global_step
        self._steering.begin(trainer.model, trainer.accelerator, completed=completed, resumes=resumes)
        loose = unprotected_parameters(trainer.model, self.weights)
        if loose:
            logger.warning(f"nothing holds {len(loose)} trainable tensors, such as {loose[0]}")
        with _whole(weights):
            start = _norm(self.penalty.drift())
        if start > 0 and not resumes:
            logger.warning(
                f"training starts at a distance of {start:.4g} from the map's reference weights, and the penalty pulls "
                "towards these: load the map's own adapter to start there"
            )

    def load(self, folder: str) -> None:
        if self._steering.has_state:
            self._steering.load_state_dict(load_steering(folder))
        losses = load_loss_parts(folder)
        if losses is not None:
            self._losses.load(losses)

    def save(self, folder: str) -> None:
        losses = self._losses.state(self._trainer.accelerator)
        if self._trainer.args.should_save:
            save_loss_parts(losses, folder)
        if self._steering.has_state and self._trainer.args.should_save:
            save_steering(self._steering.state_dict(), folder)

    def before_forward(self) -> None:
        """Lambda of this step; a streamed penalty is computed beside the forward pass."""
        self._step = self.value = self.predicted = None
        self.penalty.lam = self._steering.lam
        if not self._decoupled and self.penalty.lam > 0:
            with _whole(self.weights):
                self.penalty.begin()

    def add_data_loss(self, loss: torch.Tensor) -> None:
        self._losses.add_data_loss(loss)

    def loss_term(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
        """The coupled penalty; None where it is decoupled, or lambda is 0."""
        if self._decoupled or self.penalty.lam == 0:
            return None
        with _whole(self.weights):
            self._step = self.penalty.evaluate()
            self._take(self._step)
            return penalty_loss(self.weights, self._step, dtype, device)

    def _take(self, found: PenaltyValue) -> None:
        self.value = found.value
        self.predicted = found.literal / 2 if self._predicts else None

    def added_gradients(self) -> Mapping[str, Matrices]:
        return self._step.gradients if self._step is not None else {}

    @property
    def watches_gradients(self) -> bool:
        return self._steering.watches_gradients

    def before_step(self, gradients: Mapping[str, Matrices], *, loss_scale: float | None, tokens: int) -> None:
        self._steering.before_step(gradients)

    def after_step(self, *, skipped: bool) -> None:
        """The decoupled update, unless the optimizer did not move either."""
        rates = learning_rates(self._trainer.optimizer)
        self._steering.after_step(rates, skipped=skipped)
        if self._decoupled and not skipped and self.penalty.lam > 0:
            self._take(self.penalty.pull(rates))
        self._losses.end_step(self.value, self.predicted)
        self._steering.add_prediction(self.predicted)

    def end_of_step(self, *, last: bool) -> dict[str, float]:
        trainer = self._trainer
        return self._steering.end_of_step(trainer.model, trainer.accelerator, trainer.state.global_step, last=last)

    def logs(self) -> dict[str, float]:
        """`ce_loss`, `penalty`, `penalty_ratio`, `lam`, and the drift from the anchors, of each weight with
        `log_drift`; of a curvature map, also `predicted_rise` of general loss, and `calibrated_rise` once a probe has
        shown how far off that is."""
        losses = self._losses.flush(self._trainer.accelerator)
        prediction = self._steering.prediction
        if prediction is not None and "predicted_rise" in losses:
            calibrated = prediction.calibrated(losses["predicted_rise"])
            losses |= {} if calibrated is None else {"calibrated_rise": calibrated}
        with _whole(self.weights):
            drift = self.penalty.drift()
        own = losses | {"lam": self._steering.lam, "drift": _norm(drift)}
        return own | ({f"drift/{name}": norm for name, norm in drift.items()} if self._config.log_drift else {})

    def end(self) -> dict[str, float]:
        return self._steering.finish(self._trainer.model, self._trainer.accelerator)


def _whole(weights: Sequence[TrainedWeight]) -> AbstractContextManager[None]:
    return gathered(parameter for weight in weights for parameter in weight.parameters)


def _norm(parts: Mapping[str, float]) -> float:
    return sum(part**2 for part in parts.values()) ** 0.5
