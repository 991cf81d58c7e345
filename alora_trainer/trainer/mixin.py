"""`ALoRATrainer`: a `transformers.Trainer` that records importance, holds what was important, or both. No mathematics."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from transformers import Trainer, TrainerCallback

from alora_trainer.artefact.importance_map import ImportanceMap, as_map
from alora_trainer.basics.processes import Processes
from alora_trainer.errors import ALoRAError, Diverged
from alora_trainer.trainer import publishing
from alora_trainer.trainer.adapters import check_adapter
from alora_trainer.trainer.config import ALoRAConfig
from alora_trainer.trainer.engines import check_engine
from alora_trainer.trainer.gradients import DataGradients, check_gradients, show_before_step
from alora_trainer.trainer.initialization.settings import DEFAULT
from alora_trainer.trainer.initializing import initializing_part
from alora_trainer.trainer.part import Part
from alora_trainer.trainer.protecting import protecting_part
from alora_trainer.trainer.recording import Recording
from alora_trainer.trainer.resume import check_whole, checkpoint_to_resume, clear_checkpoint, last_good_checkpoint
from alora_trainer.trainer.running_losses import RunningLosses
from alora_trainer.trainer.steps import making_steps
from alora_trainer.weights.model_weights import adapter_of, trained_weights
from alora_trainer.weights.sharding import gathered
from alora_trainer.weights.trained_weight import TrainedWeight, first_weight_not_finite

# The mixin calls what every trainer has; only a type checker needs to be told so.
if TYPE_CHECKING:
    _TrainerHooks: TypeAlias = Trainer
else:
    _TrainerHooks = object


class ALoRAMixin(_TrainerHooks):
    """Recording and protecting for any trainer that follows `transformers.Trainer`'s hooks.

    Put it before the trainer: ``class MyProtectedTrainer(ALoRAMixin, MyTrainer): ...``. It takes four keyword arguments of
    its own and passes all others on.

    What a training does beside the Trainer's own work are its parts, in this order: choosing a fresh adapter's directions,
    holding what `importance` says is important, those given as `parts`, and recording, which sees the whole of a step. A
    method of your own that keeps something beside the training (a moving average, another penalty) is a `Part`: it is called
    at every moment of a training, saved in the checkpoints and loaded again. One with a loss of its own on every micro-batch
    overrides `compute_loss`, and multiplies by `loss_divisor` what is to count once an optimizer step.

    Args:
        importance: hold the weights that this map (or folder, or Hub id of one) says are important.
        alora: the settings; see `ALoRAConfig`.
        probe_dataset: a little general text (rows with ``input_ids``) whose loss is logged every ``alora.probe_steps`` steps
            while protecting; ``alora.budget`` steers lambda by it.
        parts: further parts of the training; see `Part`.

    Attributes:
        parts: all parts, in the order that they are called in.

    Raises:
        ALoRAError: the model, the map and the settings do not fit each other, or the engine is not supported.
    """

    def __init__(
        self,
        *args: Any,
        importance: ImportanceMap | str | os.PathLike[str] | None = None,
        alora: ALoRAConfig | None = None,
        probe_dataset: Any = None,
        parts: Sequence[Part] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(alora, (ALoRAConfig, type(None))):
            raise ALoRAError(f"alora is of type {type(alora).__name__}: pass an ALoRAConfig, as alora=ALoRAConfig(...)")
        self.alora = alora if alora is not None else ALoRAConfig()
        # What is recorded is added to the whole map, and first directions are chosen by all of it.
        own_share = self.alora.record is None and self.alora.init_adapter == DEFAULT
        self._given = None if importance is None else as_map(importance, self.alora.storage, own_share=own_share)
        self._given_place = importance
        self.alora = self.alora.meant_for(self._given, watched=probe_dataset is not None)
        self._recording = Recording(self.alora, self._given) if self.alora.record is not None else None
        idle = self._given is None and self._recording is None
        if idle and alora is not None and alora.lam != 0 and not (alora.freeze_a and alora.lam is None):
            given = "protecting" if alora.lam is None else f"lam={alora.lam}"
            raise ALoRAError(
                f"{given} needs an importance map: pass importance=..., or record one with record='projected' (lam=0 is plain "
                "LoRA)"
            )
        protecting = protecting_part(
            self._given, self.alora, probe_dataset, batch_size=self.args.per_device_eval_batch_size
        )
        self._initializing = initializing_part(self._given, self.alora)
        # Recording comes last: what is recorded is the whole movement of a step, whatever part made it.
        all_parts = (self._initializing, protecting, *parts, self._recording)
        self.parts: tuple[Part, ...] = tuple(part for part in all_parts if part is not None)
        self._running: tuple[Part, ...] = ()  # during a training: all of them
        self._weights: Sequence[TrainedWeight] = []
        self._finite = True  # the losses of the present optimizer step are
        self._tokens = 0  # of this process in the present optimizer step
        self._resumed_from: str | None = None
        self._losses = RunningLosses(self)
        if any(part.needs_weights for part in self.parts):
            self._check()
        self.add_callback(_StepObserver(self))

    def _check(self) -> None:
        """Refuse before the first step what could only go wrong silently later."""
        check_engine(self, self.alora)
        self._weights = self._find_weights()

    def _find_weights(self) -> Sequence[TrainedWeight]:
        config, importance = self.alora, self._given
        with gathered(parameter for parameter in self.model.parameters() if parameter.requires_grad):
            if importance is None:
                weights = trained_weights(self.model, config.parameterization)
            else:
                weights = importance.check_model(
                    self.model,
                    start=config.start_from,
                    missing=config.missing,
                    parameterization=config.parameterization,
                    allow_other_revision=config.allow_other_revision,
                )
            check_adapter(self.model, weights, config, importance)
        return weights

    @property
    def given_importance(self) -> ImportanceMap | None:
        """The map that was given, in the format of ``alora.storage``; None for none. Where several processes have read a share
        of it each, it is read anew, and whole."""
        if self._given is None or self._given.is_whole or self._given_place is None:
            return self._given
        return as_map(self._given_place, self.alora.storage)

    @property
    def recorded_importance(self) -> ImportanceMap | None:
        """The map that the last training recorded, added to the given one if there is one; None before it has ended, and for
        a training that records nothing."""
        return self._recording.recorded if self._recording is not None else None

    @property
    def importance(self) -> ImportanceMap | None:
        """`recorded_importance` once there is one, and `given_importance` before: the map to protect the next task with."""
        return self.recorded_importance if self.recorded_importance is not None else self.given_importance

    def publication(self) -> publishing.Publication:
        """What there is to publish of the training, as it stands now."""
        model = self.accelerator.unwrap_model(self.model)
        under_way = self._recording is not None and self._recording.recorder is not None
        return publishing.Publication(
            config=self.alora,
            args=self.args,
            state=self.state,
            model=model,
            adapter=adapter_of(self._weights) if self._weights else None,
            given=self._given,
            recorded=None if under_way else self.recorded_importance,
            repo_id=getattr(self, "hub_model_id", None),
            initialized=self._initializing.facts if self._initializing is not None else {},
        )

    # ---- the hooks of transformers.Trainer ----

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `transformers.Trainer.train`; a checkpoint that was not written to its end is passed over, or refused by name.

        Raises:
            Diverged: NaN or infinity, with the step, the layer and the last good checkpoint.
            ALoRAError: there is no checkpoint to go on from; the one that was named is not whole; a training that is recorded
                or held makes no step.
        """
        folder = Path(self.args.output_dir)
        if resume_from_checkpoint is True:
            steps = self.args.max_steps if self.args.max_steps > 0 else None
            resume_from_checkpoint = checkpoint_to_resume(folder, max_steps=steps)
        elif resume_from_checkpoint:
            check_whole(resume_from_checkpoint)
        self._resumed_from = None
        for part in self.parts:
            part.before_training(self, self._weights, resumes=bool(resume_from_checkpoint))
        try:
            with making_steps(self) if self.parts else nullcontext():
                return self._losses.corrected(super().train(resume_from_checkpoint, *args, **kwargs))
        except Diverged as error:
            if error.where:
                raise
            raise error.at(self.state.global_step + 1, last_good_checkpoint(folder)) from error

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None, **kwargs: Any
    ) -> Any:
        """The trainer's own loss and, once an optimizer step, what the parts add to it (arXiv 2501.13669 eq. 18)."""
        parts = self._running if model.training else ()
        # The gradients of all micro-batches add up, so the last one of them brings the parts' terms for all.
        complete = self.accelerator.sync_gradients
        if complete:
            for part in parts:
                part.before_forward()
        result = super().compute_loss(
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch, **kwargs
        )
        if not parts:
            return result
        loss = result[0] if return_outputs else result
        divisor = self.loss_divisor(num_items_in_batch)
        share = loss.detach() / divisor
        # FSDP2's mixed precision hands out a loss of three digits, where a penalty is lost or, in float16, overflows.
        dtype = torch.promote_types(loss.dtype, torch.float32)
        for part in parts:
            part.add_data_loss(share)
            term = part.loss_term(dtype, loss.device) if complete else None
            loss = loss if term is None else loss + term * divisor
        return (loss, *result[1:]) if return_outputs else loss

    def loss_divisor(self, num_items_in_batch: Any) -> int:
        """What `Trainer.training_step` will divide this micro-batch's loss by, so that a window's losses add up.

        Args:
            num_items_in_batch: as `compute_loss` was given it.
        """
        scaled = getattr(self, "loss_is_scaled_for_ga", None)
        if scaled is None:
            accepts = self.model_accepts_loss_kwargs
            scaled = (accepts and num_items_in_batch is not None) or self.compute_loss_func is not None
        return 1 if scaled else self.current_gradient_accumulation_steps

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One micro-batch; after the last one of a window the gradients are whole and not yet clipped."""
        self._tokens += inputs["input_ids"].numel() if "input_ids" in inputs else 0
        loss = super().training_step(model, inputs, *args, **kwargs)
        if not any(part.needs_weights for part in self._running):
            return loss
        # A loss scaler's steps may overflow: it passes over them.
        self._finite = self._finite and (self.accelerator.scaler is not None or bool(torch.isfinite(loss)))
        if self.accelerator.sync_gradients:
            self._before_optimizer_step()
        return loss

    def _before_optimizer_step(self) -> None:
        finite, self._finite = self._finite, True
        if Processes().first(None if finite else 0, self.args.device) is not None:
            raise Diverged("the loss", self._weight_not_finite())
        if self.accelerator.scaler is None:
            check_gradients(self.model, self._weights)
        if not self.is_deepspeed_enabled:  # whose engine has stepped by now
            self._show_gradients()

    def _show_gradients(self) -> None:
        tokens, self._tokens = self._tokens, 0
        watching = [part for part in self._running if part.watches_gradients]
        if not watching:
            return
        scaler = self.accelerator.scaler
        scale = float(scaler.get_scale()) if scaler is not None else None
        gradients = DataGradients(self._weights, scale or 1.0, [part.added_gradients() for part in self._running])
        for part in watching:
            part.before_step(gradients, loss_scale=scale, tokens=tokens)

    def _weight_not_finite(self) -> str | None:
        with gathered(parameter for weight in self._weights for parameter in weight.parameters):
            return first_weight_not_finite(self._weights)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds what the parts log: protecting, `ce_loss`, `penalty`, `penalty_ratio`, `lam` and `drift`."""
        if "loss" in logs:
            for part in self._running:
                logs |= part.logs()
        if "train_loss" in logs:
            logs["train_loss"] = self._losses.mean(logs["train_loss"])
        super().log(logs, *args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.args.should_save:
            clear_checkpoint(Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}")
        self.accelerator.wait_for_everyone()  # what other processes write must come after
        super()._save_checkpoint(model, trial)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        self._losses.save(output_dir, self.unlogged_losses())
        for part in self._running:
            part.save(output_dir)

    def unlogged_losses(self) -> dict[str, Any]:
        """Plain data of further losses that the log has not said yet, for a checkpoint: of a trainer with losses of its own."""
        return {}

    def take_unlogged_losses(self, state: Mapping[str, Any]) -> None:
        """Go on with what `unlogged_losses` gave; `state` may lack it."""

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # The Trainer's own state, written next, says that the checkpoint is whole: that of all processes must be.
        self.accelerator.wait_for_everyone()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        self._resumed_from = checkpoint

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        with publishing.token_kept_out(self.args):
            super()._save(output_dir, state_dict=state_dict)
        if self.args.should_save:
            publishing.save_beside_model(self.publication(), output_dir or self.args.output_dir)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        publishing.prepare_push(self, self.publication(), self._recording, checkpoint_folder)
        with publishing.token_kept_out(self.args):
            super()._push_from_checkpoint(checkpoint_folder)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The card of the recorded map or of the protected adapter; the trainer's own card if this is neither."""
        given = publishing.card_arguments(super().create_model_card, args, kwargs)
        if self.is_world_process_zero() and not publishing.write_card(self.publication(), given):
            super().create_model_card(*args, **kwargs)

    # ---- what the step observer calls ----

    def _begin(self) -> None:
        self._tokens, self._finite = 0, True
        self._losses.begin()
        if self._resumed_from is not None:
            self.take_unlogged_losses(self._losses.load(self._resumed_from))
        if self._weights:  # found anew: FSDP, `model_init` and `set_adapter` have put others into their place since
            self._weights = self._find_weights()
        for part in self.parts:
            part.begin(self, self._weights, resumes=self._resumed_from is not None)
            if self._resumed_from is not None:
                part.load(self._resumed_from)
        self._running = self.parts
        if self.is_deepspeed_enabled and any(part.watches_gradients for part in self.parts):
            show_before_step(self.accelerator.deepspeed_engine_wrapped.engine, self._show_gradients)

    def _after_optimizer_step(self) -> None:
        for part in self._running:
            part.after_step(skipped=self.accelerator.optimizer_step_was_skipped)

    def _end_of_step(self, control: Any) -> None:
        if any(part.ends_training for part in self._running):
            control.should_training_stop = True
        if control.should_training_stop:
            self._check_weights()  # no step comes after this one that would stumble over them
        for part in self._running:
            logs = part.end_of_step(last=control.should_training_stop)
            if logs:
                due = control.should_log
                self.log(logs)
                control.should_log = due  # logging clears it, and the Trainer's own line is still to come

    def _check_weights(self) -> None:
        broken = self._weight_not_finite()
        if broken is not None:  # the step is counted already
            checkpoint = last_good_checkpoint(Path(self.args.output_dir))
            raise Diverged("the weight", broken).at(self.state.global_step, checkpoint)

    def _end(self) -> None:
        self._check_weights()
        ended, self._running, self._resumed_from = self._running, (), None
        for part in ended:
            logs = part.end()
            if logs:
                self.log(logs)


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
        self.trainer._end_of_step(control)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._end()
