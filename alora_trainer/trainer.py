"""`ALoRATrainer`: a `transformers.Trainer` that records importance, holds what was important, or both. No mathematics."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from transformers import Trainer, TrainerCallback

from alora_trainer import publishing
from alora_trainer.adapted import AdaptedWeight, adapted_weights, learning_rates, unprotected_parameters
from alora_trainer.checkpoint import load_recorder, save_recorder
from alora_trainer.config import ALoRAConfig
from alora_trainer.errors import ALoRAError
from alora_trainer.importance.map import ImportanceMap
from alora_trainer.importance.recorder import Recorder
from alora_trainer.loss_parts import LossParts
from alora_trainer.penalty.function import penalty_loss
from alora_trainer.penalty.quadratic import PenaltyStep, QuadraticPenalty
from alora_trainer.provenance import describe_recording

logger = logging.getLogger(__name__)

# The mixin calls what every trainer has; only a type checker needs to be told so.
if TYPE_CHECKING:
    _TrainerHooks: TypeAlias = Trainer
else:
    _TrainerHooks = object


class ALoRAMixin(_TrainerHooks):
    """Recording and protecting for any trainer that follows `transformers.Trainer`'s hooks.

    Put it before the trainer: ``class MyProtectedTrainer(ALoRAMixin, MyTrainer): ...``. It takes two keyword arguments of
    its own and passes all others on.

    Args:
        importance: hold the weights that this map (or folder, or Hub id of one) says are important.
        alora: the settings; see `ALoRAConfig`.

    Attributes:
        importance: the map that was given, and after a training that recorded, the recorded one (added to the given one).

    Raises:
        ALoRAError: the model, the map and the settings do not fit each other, or the engine is not supported.
    """

    def __init__(
        self, *args: Any, importance: ImportanceMap | str | None = None, alora: ALoRAConfig | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        publishing.keep_token_out_of_files(self.args)
        if isinstance(importance, str):
            importance = ImportanceMap.from_pretrained(importance)
        self.importance = importance
        self.alora = alora if alora is not None else ALoRAConfig()
        self._given_importance = importance
        self._weights: list[AdaptedWeight] = []
        self._recorder: Recorder | None = None
        self._penalty: QuadraticPenalty | None = None
        self._penalty_step: PenaltyStep | None = None
        self._parts = LossParts()
        self._resumed_from: str | None = None
        if self._records or importance is not None:
            self._check()
            self.add_callback(_StepObserver(self))
        elif alora is not None and alora.lam > 0:
            raise ALoRAError(
                f"lam={alora.lam} needs an importance map: pass importance=..., or record one with record='path'"
            )

    @property
    def _records(self) -> bool:
        return self.alora.record is not None

    def _check(self) -> None:
        """Refuse before the first step what could only go wrong silently later."""
        args = self.args
        if args.n_gpu > 1:
            raise ALoRAError(
                "several GPUs in one process (DataParallel) are not supported: launch with torchrun, one process a GPU"
            )
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise ALoRAError(
                "DeepSpeed and FSDP are not supported: use plain data parallelism (torchrun without either)"
            )
        if self._records and args.load_best_model_at_end:
            raise ALoRAError(
                "load_best_model_at_end would pair the importance of the whole training with earlier weights: "
                "set it to False while recording"
            )
        if self._given_importance is not None:
            self._weights = self._given_importance.check_model(
                self.model, allow_other_revision=self.alora.allow_other_revision
            )
        else:
            self._weights = adapted_weights(self.model)

    # ---- the hooks of transformers.Trainer ----

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None, **kwargs: Any
    ) -> Any:
        """The trainer's own loss and, once an optimizer step, the penalty (arXiv 2501.13669 eq. 18)."""
        result = super().compute_loss(
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch, **kwargs
        )
        if self._penalty is None or not model.training:
            return result
        loss = result[0] if return_outputs else result
        divisor = self._loss_divisor(num_items_in_batch)
        self._parts.add_data_loss(loss.detach() / divisor)
        # The gradients of all micro-batches add up, so the last one of them brings the penalty for all.
        if self._penalty.lam > 0 and self.accelerator.sync_gradients:
            self._penalty_step = self._penalty.evaluate()
            self._parts.add_penalty(self._penalty_step.value)
            loss = loss + penalty_loss(self._weights, self._penalty_step, loss.dtype, loss.device) * divisor
        return (loss, *result[1:]) if return_outputs else loss

    def _loss_divisor(self, num_items_in_batch: Any) -> int:
        """What `Trainer.training_step` will divide this micro-batch's loss by."""
        scaled = getattr(self, "loss_is_scaled_for_ga", None)
        if scaled is None:
            accepts = self.model_accepts_loss_kwargs
            scaled = (accepts and num_items_in_batch is not None) or self.compute_loss_func is not None
        return 1 if scaled else self.current_gradient_accumulation_steps

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One micro-batch; after the last one of a window the gradients are whole and not yet clipped."""
        tokens = inputs["input_ids"].numel() if "input_ids" in inputs else 0
        loss = super().training_step(model, inputs, *args, **kwargs)
        if self._recorder is not None:
            self._recorder.tokens += tokens * self.args.world_size
        if self.accelerator.sync_gradients:
            if self._penalty is not None:
                self._parts.end_step()
            if self._recorder is not None:
                self._observe_gradients(self._recorder)
        return loss

    def _observe_gradients(self, recorder: Recorder) -> None:
        scaler = self.accelerator.scaler
        scale = float(scaler.get_scale()) if scaler is not None else None
        gradients = {}
        for weight in self._weights:
            pair = [_gradient(p, weight.dtype, scale or 1.0) for p in (weight.parameter_a, weight.parameter_b)]
            if self._penalty_step is not None:
                pair = [g.sub_(own) for g, own in zip(pair, self._penalty_step.gradients[weight.name], strict=True)]
            gradients[weight.name] = (pair[0], pair[1])
        recorder.before_step(gradients, learning_rates(self.optimizer), loss_scale=scale)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds `ce_loss`, `penalty`, `penalty_ratio` and each weight's drift to the training log."""
        if self._penalty is not None and "loss" in logs:
            logs |= self._parts.flush(self.accelerator)
            drift = self._penalty.drift()
            logs["drift"] = sum(norm**2 for norm in drift.values()) ** 0.5
            logs |= {f"drift/{name}": norm for name, norm in drift.items()}
        super().log(logs, *args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self._recorder is not None and self.args.should_save:
            save_recorder(self._recorder, output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        self._resumed_from = checkpoint

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict=state_dict)
        if self.args.should_save:
            publishing.save_beside_model(self, output_dir or self.args.output_dir)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        publishing.prepare_push(self, checkpoint_folder)
        super()._push_from_checkpoint(checkpoint_folder)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The card of the recorded map or of the protected adapter; the trainer's own card if this is neither."""
        given = publishing.card_arguments(super().create_model_card, args, kwargs)
        if self.is_world_process_zero() and not publishing.write_card(self, given):
            super().create_model_card(*args, **kwargs)

    # ---- what the step observer calls ----

    def _begin(self) -> None:
        self._parts = LossParts()
        self._penalty_step = None
        if self._given_importance is not None:
            self._penalty = QuadraticPenalty(
                self._weights,
                self._given_importance,
                lam=self.alora.lam,
                layer_weights=self.alora.layer_weights,
                normalize=self.alora.normalize,
                backend=self.alora.backend,
            )
            self._warn_of_surprises(self._penalty)
        if self.alora.record is not None:
            self._recorder = Recorder(
                self._weights,
                self.alora.record,
                self.alora.xi,
                location=self.alora.omega_device,
                fold_every=self.alora.fold_every,
                folder=Path(self.args.output_dir) / f"importance-recording-{self.args.process_index}",
            )
            if self._resumed_from is not None:
                load_recorder(self._recorder, self._resumed_from)

    def _warn_of_surprises(self, penalty: QuadraticPenalty) -> None:
        loose = unprotected_parameters(self.model, self._weights)
        if loose:
            logger.warning(f"nothing holds {len(loose)} trainable tensors outside LoRA, such as {loose[0]}")
        start = sum(norm**2 for norm in penalty.drift().values()) ** 0.5
        if start > 0 and self._resumed_from is None:
            logger.warning(
                f"training starts at a distance of {start:.4g} from the map's reference weights, and the penalty pulls "
                "towards these: load the map's own adapter to start there"
            )

    def _after_optimizer_step(self) -> None:
        if self._recorder is not None:
            self._recorder.after_step(skipped=self.accelerator.optimizer_step_was_skipped)

    @property
    def _tokens_spent(self) -> bool:
        limit = self.alora.record_tokens
        return self._recorder is not None and limit is not None and self._recorder.tokens >= limit

    def _end(self) -> None:
        recorder, self._recorder = self._recorder, None
        self._penalty = None
        if recorder is not None:
            recorded = describe_recording(self, recorder)
            self.importance = recorded if self._given_importance is None else self._given_importance + recorded


class ALoRATrainer(ALoRAMixin, Trainer):
    """`transformers.Trainer` with `importance` and `alora` beside its own arguments; see `ALoRAMixin`."""


class _StepObserver(TrainerCallback):
    """Passes the moments of training that have no method to override on to the trainer."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._begin()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._after_optimizer_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer._tokens_spent:
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._end()


def _gradient(parameter: torch.nn.Parameter, dtype: torch.dtype, scale: float) -> torch.Tensor:
    """A copy of the accumulated gradient as a matrix, without the loss scaler's factor; zero for a frozen factor."""
    if parameter.grad is None:
        return torch.zeros_like(parameter, dtype=dtype).flatten(1)
    return parameter.grad.detach().flatten(1).to(dtype, copy=True).div_(scale)
