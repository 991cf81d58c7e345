"""A guard on general ability for any `transformers.Trainer`: it watches general text, and stops, warns or scales."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alora_trainer.basics.shares import check_rise
from alora_trainer.errors import ALoRAError
from alora_trainer.penalty.strength.probe import Probe
from alora_trainer.penalty.strength.promise import LEAST_SEQUENCES, Bound
from alora_trainer.trainer.retention.scale_to_promise import Promise, scale_to_promise
from alora_trainer.weights.shrinking import Shrinking

logger = logging.getLogger(__name__)

ACTIONS = ("stop", "warn", "scale")
_LENGTH = 256  # tokens of a text that are taken, if the guard encodes it


class RetentionGuard(TrainerCallback):
    """Holds a promise on general loss in the training of any Trainer, without an importance map.

    The measure is `promise.Bound`: the rise of the mean negative log-likelihood a token of `general` over that of the base
    model (a `PeftModel` with its adapters off; else the model at the start), with its one-sided 95 % limit over sequences.

    - ``stop``: where the limit goes above `max_rise`, the training ends with the weights of the last look that kept it. Looks
      at one training in their order are tests in a fixed order, so that what it ends with is promised with 95 %.
    - ``warn``: says so, once, and changes nothing.
    - ``scale``: at the end of the training, a LoRA adapter is scaled to the largest share of its movement that can be promised
      (`scale_to_promise`); one half of `general` chooses, the other promises. Save the model after ``train()``.

    What every look finds goes into the trainer's log as ``general_rise`` and ``general_rise_upper``.

    Args:
        general: tokenised sequences (rows with ``input_ids``), or texts, which the trainer's tokenizer encodes. The training
            must not see them. Documents, and not pieces of a few: each counts as one observation.
        max_rise: the largest rise, as a share of the base model's loss: 0.01 is one per cent of it.
        action: see above.
        every: look every so many optimizer steps; None looks ten times a training.
        batch_size: sequences evaluated at a time.

    Attributes:
        promise: what ``scale`` could promise; None before.
        looks: (step, bound) of every look.
        kept: whether the last look, or the promise, keeps `max_rise`; None before there is one.

    Raises:
        ALoRAError: a setting is wrong, or there are too few sequences for a promise.
    """

    def __init__(
        self,
        general: Sequence[Any] | Any,
        max_rise: float = 0.01,
        action: str = "stop",
        *,
        every: int | None = None,
        batch_size: int = 8,
    ) -> None:
        if action not in ACTIONS:
            raise ALoRAError(f"action={action!r} is unknown: use one of {', '.join(ACTIONS)}")
        check_rise(max_rise, "max_rise")
        if every is not None and every < 1:
            raise ALoRAError(f"every={every!r} must be a number of steps, or None")
        if isinstance(general, (str, Path)):  # which would be as many texts as it has characters
            raise ALoRAError(
                f"general={str(general)!r} is one text or a path: give a list of texts, or of rows with input_ids; of a file, "
                'such as load_dataset("json", data_files=PATH, split="train")["text"]'
            )
        self._general = list(general)
        least = LEAST_SEQUENCES * (2 if action == "scale" else 1)
        if len(self._general) < least:
            raise ALoRAError(
                f"general has {len(self._general)} sequences, and action={action!r} needs {least} at least: give more text"
            )
        self.max_rise, self.action, self.every, self._batch_size = max_rise, action, every, batch_size
        self.promise: Promise | None = None
        self.looks: list[tuple[int, Bound]] = []
        self._parts: list[Probe] = []
        self._before: list[float] = []
        self._good: dict[str, torch.Tensor] = {}
        self._warned = self._stopped = False

    @property
    def kept(self) -> bool | None:
        """Whether the last look, or the promise, keeps `max_rise`; None before there is one."""
        if self.promise is not None:
            return self.promise.kept
        return self.looks[-1][1].keeps(self.max_rise) if self.looks else None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model, accelerator = kwargs["model"], Accelerator()
        self.looks, self.promise, self._warned, self._stopped = [], None, False, False
        rows = self._rows(kwargs.get("processing_class"))
        if self.action == "scale":
            Shrinking(model)  # what cannot be scaled is known before the training
            self._parts = [Probe(rows[0::2], self._batch_size), Probe(rows[1::2], self._batch_size)]
            return
        self._parts = [Probe(rows, self._batch_size)]
        if isinstance(model, PeftModel):
            off: Any = model.disable_adapter()
        elif state.global_step:
            raise ALoRAError(
                "RetentionGuard cannot go on with a training of the model's own weights, whose start is no longer there: "
                "begin it anew, or train an adapter"
            )
        else:
            off = contextlib.nullcontext()
        with off:
            self._before = self._parts[0].evaluate(model, accelerator)
        self._look(model, accelerator, state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        every = self.every or max(1, state.max_steps // 10)
        if self.action == "scale" or state.global_step % every and state.global_step != state.max_steps:
            return control
        if self._fails(kwargs["model"], state):
            control.should_training_stop = True
        return control

    def _fails(self, model: Any, state: TrainerState) -> bool:
        """Look, and do what is to be done; whether the training is to stop."""
        bound = self._look(model, Accelerator(), state)
        if bound.keeps(self.max_rise):
            return False
        said = f"step {state.global_step}: general loss rose by {bound.rise:.2%} (95 %: {bound.upper:.2%} at most)"
        if self.action == "stop":
            logger.warning(f"{said}, for max_rise {self.max_rise:.2%}: stopped, with the weights of the look before")
            self._put_back(model)
            self.looks.pop()  # of weights that are no more
            self._stopped = True
        elif not self._warned:
            self._warned = True
            logger.warning(f"{said}, for max_rise {self.max_rise:.2%}")
        return self._stopped

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.action != "scale":
            if not self._stopped and self.looks[-1][0] != state.global_step:  # somebody else ended the training
                self._fails(kwargs["model"], state)
            return
        choose, promise = self._parts
        self.promise = scale_to_promise(
            kwargs["model"], Accelerator(), choose=choose, promise=promise, budget=self.max_rise
        )
        (logger.info if self.promise.kept else logger.warning)(self.promise.sentence())
        self._log(state, self.promise.rise)

    def _rows(self, tokenizer: Any) -> list[Any]:
        if not isinstance(self._general[0], str):
            return self._general
        if tokenizer is None:
            raise ALoRAError(
                "the trainer has no tokenizer to encode general with: give it processing_class, or rows of tokens"
            )
        encoded = tokenizer(self._general, truncation=True, max_length=_LENGTH, verbose=False)["input_ids"]
        return [{"input_ids": ids} for ids in encoded if len(ids) > 1]

    def _look(self, model: Any, accelerator: Any, state: TrainerState) -> Bound:
        bound = Probe.bound(self._before, self._parts[0].evaluate(model, accelerator))
        self.looks.append((state.global_step, bound))
        self._log(state, bound)
        if self.action == "stop" and bound.keeps(self.max_rise):
            self._good = {name: p.detach().cpu().clone() for name, p in model.named_parameters() if p.requires_grad}
        return bound

    def _put_back(self, model: Any) -> None:
        for name, parameter in model.named_parameters():
            if name in self._good:
                parameter.data.copy_(self._good[name])

    @staticmethod
    def _log(state: TrainerState, bound: Bound) -> None:
        state.log_history.append(
            {"step": state.global_step, "general_rise": bound.rise, "general_rise_upper": bound.upper}
        )
