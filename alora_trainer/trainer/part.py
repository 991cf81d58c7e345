"""`Part`: what takes part in a training beside the trainer, such as recording importance, or holding what is important."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from transformers import Trainer

from alora_trainer.weights.trained_weight import Matrices, TrainedWeight


class Part:
    """What a trainer's hooks call during a training; a subclass overrides the moments that it has something to do in.

    In this order; within an optimizer step, every part is called at one moment before any is at the next:

        before_training      of `train`: nothing has been loaded from a checkpoint yet, and no optimizer made
        begin, load          before the first step; `load` where the training goes on from a checkpoint
        before_forward       of an optimizer step's last micro-batch
        add_data_loss        after every micro-batch's forward pass
        loss_term            after the last one's: added to its loss
        before_step          the gradients are whole and not yet clipped (for the parts with `watches_gradients`)
        after_step           the optimizer has stepped
        end_of_step          the step is counted
        logs                 of every line of the training log
        save                 of every checkpoint
        end                  the training is over

    Attributes:
        needs_weights: it is about the weights that train. The trainer then finds these, refuses an engine under which they
            could not be followed, and stops at the first loss that is not finite.
    """

    needs_weights: bool = False

    @property
    def watches_gradients(self) -> bool:
        """Whether `before_step` must be called."""
        return False

    @property
    def ends_training(self) -> bool:
        """Whether the present optimizer step is to be the last one; asked at its end."""
        return False

    def before_training(self, trainer: Trainer, weights: Sequence[TrainedWeight], *, resumes: bool) -> None:
        """`train` was called: no checkpoint has been loaded into the model yet, no optimizer made, and no engine has it.

        Args:
            trainer: as it was made.
            weights: those that train, as the model was given; empty if no part has `needs_weights`.
            resumes: the training goes on from a checkpoint.
        """

    def begin(self, trainer: Trainer, weights: Sequence[TrainedWeight], *, resumes: bool) -> None:
        """A training begins in this process.

        Args:
            trainer: ready to train: its model, optimizer, accelerator, arguments and state are what they will be.
            weights: those that train; empty if no part has `needs_weights`.
            resumes: it goes on from a checkpoint, and `load` is called next.
        """

    def load(self, folder: str) -> None:
        """Go on with what `save` wrote into this checkpoint.

        Raises:
            ALoRAError: it is not there, or does not fit.
        """

    def before_forward(self) -> None:
        """The forward pass of an optimizer step's last micro-batch is next."""

    def add_data_loss(self, loss: torch.Tensor) -> None:
        """A micro-batch's share of its optimizer step's own loss (a detached scalar), without any part's term."""

    def loss_term(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
        """What to add to the loss of one optimizer step, however many micro-batches it has (a scalar); None for nothing.

        Args:
            dtype, device: of the loss.
        """
        return None

    def added_gradients(self) -> Mapping[str, Matrices]:
        """What `loss_term` adds to the present step's gradients, by weight name, as matrices; `before_step` gets those of
        the data alone. A part that leaves this out says that its term is part of the data's loss."""
        return {}

    def before_step(self, gradients: Mapping[str, Matrices], *, loss_scale: float | None, tokens: int) -> None:
        """The optimizer is about to step.

        Args:
            gradients: of the data loss, by weight name, as matrices: unclipped, unscaled, and the same on all processes. Each
                is made when it is asked for; of weights that are spread over processes, all of these must ask together.
            loss_scale: the factor of an fp16 loss scaler that is at work; infinite gradients are its ordinary business.
            tokens: that this process has seen in this optimizer step.
        """

    def after_step(self, *, skipped: bool) -> None:
        """The optimizer has stepped, or (`skipped`) passed over the step because of an fp16 overflow."""

    def end_of_step(self, *, last: bool) -> dict[str, float]:
        """The step is counted in ``trainer.state.global_step``; the training ends here if `last`.

        Returns:
            what is to be logged at once, in a line of its own; empty for nothing.
        """
        return {}

    def logs(self) -> dict[str, float]:
        """What to add to a line of the training log; all processes ask for it together."""
        return {}

    def save(self, folder: str) -> None:
        """Write into a checkpoint what a resumed training needs; all processes call it, so mind ``args.should_save``."""

    def end(self) -> dict[str, float]:
        """The training is over, or was ended; what is to be logged, as in `end_of_step`."""
        return {}
