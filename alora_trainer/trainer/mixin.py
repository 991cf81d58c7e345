"""`ALoRATrainer`: a `transformers.Trainer` that records importance, holds what was important, or both. No mathematics."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from transformers import Trainer, TrainerCallback

from alora_trainer.artefact.importance_map import ImportanceMap
from alora_trainer.artefact.provenance import describe_recording
from alora_trainer.basics.processes import Processes
from alora_trainer.errors import ALoRAError, Diverged
from alora_trainer.importance.recording.recorder import Recorder
from alora_trainer.penalty.strength.probe import Probe
from alora_trainer.trainer import publishing
from alora_trainer.trainer.checkpoint import load_protection, load_recorder, save_protection, save_recorder
from alora_trainer.trainer.config import ALoRAConfig
from alora_trainer.trainer.engines import check_engine
from alora_trainer.trainer.loss_parts import LossParts
from alora_trainer.trainer.protecting import Protection
from alora_trainer.trainer.resume import check_whole, checkpoint_to_resume, last_good_checkpoint
from alora_trainer.weights.model_weights import trained_weights
from alora_trainer.weights.parameterization import Parameterization
from alora_trainer.weights.trained_weight import (
    Matrices,
    TrainedWeight,
    first_not_finite,
    learning_rates,
    unprotected_parameters,
)

logger = logging.getLogger(__name__)

# The mixin calls what every trainer has; only a type checker needs to be told so.
if TYPE_CHECKING:
    _TrainerHooks: TypeAlias = Trainer
else:
    _TrainerHooks = object


class ALoRAMixin(_TrainerHooks):
    """Recording and protecting for any trainer that follows `transformers.Trainer`'s hooks.

    Put it before the trainer: ``class MyProtectedTrainer(ALoRAMixin, MyTrainer): ...``. It takes three keyword arguments of
    its own and passes all others on.

    Args:
        importance: hold the weights that this map (or folder, or Hub id of one) says are important.
        alora: the settings; see `ALoRAConfig`.
        probe_dataset: a little general text (rows with ``input_ids``) whose loss is logged every ``alora.probe_steps`` steps
            while protecting; ``alora.budget`` steers lambda by it.

    Attributes:
        importance: the map that was given, and after a training that recorded, the recorded one (added to the given one).

    Raises:
        ALoRAError: the model, the map and the settings do not fit each other, or the engine is not supported.
    """

    def __init__(
        self,
        *args: Any,
        importance: ImportanceMap | str | None = None,
        alora: ALoRAConfig | None = None,
        probe_dataset: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        publishing.keep_token_out_of_files(self.args)
        self.alora = alora if alora is not None else ALoRAConfig()
        if isinstance(importance, str):
            importance = ImportanceMap.from_pretrained(importance, storage=self.alora.storage)
        elif importance is not None and self.alora.storage is not None:
            importance = importance.convert(self.alora.storage)
        self.importance = importance
        self._given_importance = importance
        self._weights: Sequence[TrainedWeight] = []
        self._recorder: Recorder | None = None
        self._protection: Protection | None = None
        self._probe: Probe | None = None
        self._parts = LossParts()
        self._finite = True  # the losses of the present optimizer step are
        self._tokens = 0  # of this process in the present optimizer step
        self._resumed_from: str | None = None
        if self._records or importance is not None:
            self._check()
            self.add_callback(_StepObserver(self))
        elif alora is not None and alora.lam != 0:
            raise ALoRAError(
                f"lam={alora.lam} needs an importance map: pass importance=..., or record one with record='projected'"
            )
        if importance is not None and self.alora.budget is not None and probe_dataset is None:
            raise ALoRAError(f"budget={self.alora.budget} needs a probe_dataset: a little general text to keep it on")
        if probe_dataset is not None:
            if importance is None:
                raise ALoRAError("a probe_dataset is watched while protecting: pass importance=..., too")
            self._probe = Probe(probe_dataset, self.args.per_device_eval_batch_size)

    @property
    def _records(self) -> bool:
        return self.alora.record is not None

    def _check(self) -> None:
        """Refuse before the first step what could only go wrong silently later."""
        check_engine(self, self.alora)
        self._weights = self._find_weights()

    def _find_weights(self) -> Sequence[TrainedWeight]:
        if self._given_importance is None:
            return trained_weights(self.model, Parameterization.of(self.alora.full_parameters))
        return self._given_importance.check_model(
            self.model,
            start=self.alora.start,
            fresh_base=self.alora.fresh_base,
            missing=self.alora.missing,
            parameterization=Parameterization.of(self.alora.full_parameters),
            allow_other_revision=self.alora.allow_other_revision,
        )

    # ---- the hooks of transformers.Trainer ----

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `transformers.Trainer.train`; a checkpoint that was not written to its end is passed over, or refused by name.

        Raises:
            Diverged: NaN or infinity, with the step, the layer and the last good checkpoint.
            ALoRAError: there is no checkpoint to go on from; the one that was named is not whole.
        """
        folder = Path(self.args.output_dir)
        if resume_from_checkpoint is True:
            steps = self.args.max_steps if self.args.max_steps > 0 else None
            resume_from_checkpoint = checkpoint_to_resume(folder, max_steps=steps)
        elif resume_from_checkpoint:
            check_whole(resume_from_checkpoint)
        self._resumed_from = None
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        except Diverged as error:
            raise error.at(self.state.global_step + 1, last_good_checkpoint(folder)) from error

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None, **kwargs: Any
    ) -> Any:
        """The trainer's own loss and, once an optimizer step, the penalty (arXiv 2501.13669 eq. 18)."""
        protection = self._protection if model.training else None
        if protection is not None and self.accelerator.sync_gradients:
            protection.begin_step()
        result = super().compute_loss(
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch, **kwargs
        )
        if protection is None:
            return result
        loss = result[0] if return_outputs else result
        divisor = self._loss_divisor(num_items_in_batch)
        self._parts.add_data_loss(loss.detach() / divisor)
        # The gradients of all micro-batches add up, so the last one of them brings the penalty for all.
        if self.accelerator.sync_gradients:
            term = protection.loss_term(loss.dtype, loss.device)
            loss = loss if term is None else loss + term * divisor
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
        self._tokens += inputs["input_ids"].numel() if "input_ids" in inputs else 0
        loss = super().training_step(model, inputs, *args, **kwargs)
        if self._recorder is None and self._protection is None:
            return loss
        # A loss scaler's steps may overflow: it passes over them.
        self._finite = self._finite and (self.accelerator.scaler is not None or bool(torch.isfinite(loss)))
        if self.accelerator.sync_gradients:
            self._before_optimizer_step()
        return loss

    def _before_optimizer_step(self) -> None:
        recorder, protection = self._recorder, self._protection
        tokens, self._tokens = self._tokens, 0
        finite, self._finite = self._finite, True
        if Processes().first(None if finite else 0, self.args.device) is not None:
            raise Diverged("the loss", first_not_finite(self._weights))
        watches = protection is not None and protection.watches_gradients
        if recorder is None and not watches:
            return
        scaler = self.accelerator.scaler
        scale = float(scaler.get_scale()) if scaler is not None else None
        gradients = self._data_gradients(scale or 1.0)
        if protection is not None and watches:
            protection.before_step(gradients)
        if recorder is not None:
            recorder.tokens += int(Processes().total(tokens, self.args.device))
            recorder.before_step(gradients, learning_rates(self.optimizer), loss_scale=scale)

    def _data_gradients(self, scale: float) -> dict[str, Matrices]:
        """The gradients of the data loss alone, unscaled and not yet clipped."""
        step = self._protection.step if self._protection is not None else None
        gradients = {weight.name: weight.gradients(scale) for weight in self._weights}
        for name, of_penalty in step.gradients.items() if step is not None else ():
            for gradient, own in zip(gradients[name], of_penalty, strict=True):
                gradient.sub_(own)
        return gradients

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds `ce_loss`, `penalty`, `penalty_ratio`, `lam` and each weight's drift to the training log."""
        if self._protection is not None and "loss" in logs:
            logs |= self._parts.flush(self.accelerator) | {"lam": self._protection.lam}
            drift = self._protection.penalty.drift()
            logs["drift"] = sum(norm**2 for norm in drift.values()) ** 0.5
            logs |= {f"drift/{name}": norm for name, norm in drift.items()}
        super().log(logs, *args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self._recorder is not None:
            save_recorder(self._recorder, output_dir)
        if self._protection is not None and self._protection.has_state and self.args.should_save:
            save_protection(self._protection.state_dict(), output_dir)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # The Trainer's own state, written next, says that the checkpoint is whole: that of all processes must be.
        self.accelerator.wait_for_everyone()

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
        self._tokens, self._finite = 0, True
        if self._recorder is not None:  # of a training that was broken off
            self._recorder.close()
        if self.is_fsdp_enabled:  # which has put other parameters into the model
            self._weights = self._find_weights()
        if self._given_importance is not None:
            protection = Protection(
                self._weights, self._given_importance, self.alora, steps=self.state.max_steps, probe=self._probe
            )
            resumed = self._resumed_from if protection.has_state else None
            state = load_protection(resumed) if resumed is not None else None
            protection.begin(self.model, self.accelerator, completed=self.state.global_step, state=state)
            self._warn_of_surprises(protection)
            self._protection = protection
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

    def _warn_of_surprises(self, protection: Protection) -> None:
        loose = unprotected_parameters(self.model, protection.weights)
        if loose:
            logger.warning(f"nothing holds {len(loose)} trainable tensors, such as {loose[0]}")
        start = sum(norm**2 for norm in protection.penalty.drift().values()) ** 0.5
        if start > 0 and self._resumed_from is None:
            logger.warning(
                f"training starts at a distance of {start:.4g} from the map's reference weights, and the penalty pulls "
                "towards these: load the map's own adapter to start there"
            )

    def _after_optimizer_step(self) -> None:
        skipped = self.accelerator.optimizer_step_was_skipped
        if self._protection is not None:
            self._protection.after_optimizer_step(learning_rates(self.optimizer), skipped=skipped)
            self._parts.end_step(self._protection.value)
        # After the decoupled update: what is recorded is the whole movement, as with the coupled penalty.
        if self._recorder is not None:
            self._recorder.after_step(skipped=skipped)

    def _end_of_step(self, last: bool) -> None:
        if self._protection is None:
            return
        logs = self._protection.end_of_step(self.model, self.accelerator, self.state.global_step, last=last)
        if logs:
            due = self.control.should_log
            self.log(logs)
            self.control.should_log = due  # logging clears it, and the Trainer's own line is still to come

    @property
    def _tokens_spent(self) -> bool:
        limit = self.alora.record_tokens
        return self._recorder is not None and limit is not None and self._recorder.tokens >= limit

    def _end(self) -> None:
        if self._protection is not None:
            logs = self._protection.finish(self.model, self.accelerator)
            if logs:
                self.log(logs)
        recorder, self._recorder = self._recorder, None
        self._protection, self._resumed_from = None, None
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
        self.trainer._end_of_step(last=control.should_training_stop)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._end()
