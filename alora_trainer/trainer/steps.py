"""Whether a training makes any step at all: transformers ends one that makes none as if it had trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import Trainer
from transformers.trainer_utils import has_length

from alora_trainer.errors import ALoRAError


@contextmanager
def making_steps(trainer: Trainer) -> Iterator[None]:
    """Refuse a training that makes no step: before it where the length of the data is known, else after it.

    Raises:
        ALoRAError: there is no data, or not enough for one whole batch where only whole ones count.
    """
    data = trainer.train_dataset
    if data is not None and has_length(data) and len(data) < _batch(trainer):
        loader = trainer.get_train_dataloader()
        if has_length(loader) and len(loader) == 0:
            raise _no_steps(trainer)
    try:
        yield
    except ValueError as error:
        # What accelerate says of an empty stream that one process reads for all.
        if trainer.state.global_step == 0 and "does not contain any data" in str(error):
            raise _no_steps(trainer) from error
        raise
    if trainer.state.global_step == 0:
        raise _no_steps(trainer)


def _no_steps(trainer: Trainer) -> ALoRAError:
    data = trainer.train_dataset
    if has_length(data) and len(data) >= _batch(trainer):
        return ALoRAError(
            f"the training makes no step, so that nothing is learned: max_steps={trainer.args.max_steps} and "
            f"num_train_epochs={trainer.args.num_train_epochs:g} allow none"
        )
    items = f"{len(data)} items" if has_length(data) else "data"
    return ALoRAError(
        f"the training makes no step, so that nothing is learned: its {items} make no whole batch of {_batch(trainer)}; lower "
        "per_device_train_batch_size, set dataloader_drop_last to False, or give it more data"
    )


def _batch(trainer: Trainer) -> int:
    return trainer.args.train_batch_size * trainer.args.world_size
