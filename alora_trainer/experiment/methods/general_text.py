"""Trainings that see general text beside the domain: which batch comes when, and how its loss enters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods.extra_loss import ExtraLossTrainer
from alora_trainer.experiment.methods.method import Method

# Rows that a mean length is taken over, evenly spaced; and micro-batches, of rows beside one.
_MEASURED = 1000


@dataclass(frozen=True)
class GeneralTextOptions:
    """Of all methods that see general text while they train on the domain.

    Attributes:
        fraction: sequences of general text in a micro-batch, as a share of its domain sequences.
        weight: what the loss on general text is multiplied by.
        spread: a micro-batch has as many as keep the share over the whole training, which may be none in most of them; without
            it, each has the same number and at least one, which is the least that a small share can be.
        equal_work: make so many steps fewer that as many tokens go through the model as in a training on the domain alone.

    Raises:
        ALoRAError: a number is out of range.
    """

    fraction: float = 0.1
    weight: float = 1.0
    spread: bool = False
    equal_work: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ALoRAError(f"fraction={self.fraction!r} must lie between 0 and 1")
        if self.weight < 0:
            raise ALoRAError(f"weight={self.weight!r} must not be negative")

    def rows(self, batch_size: int) -> int:
        """The most rows of general text beside a micro-batch of `batch_size` rows of the domain."""
        share = self.fraction * batch_size
        return max(1, math.ceil(share - 1e-9) if self.spread else round(share))

    def mean_rows(self, batch_size: int) -> float:
        """Rows of general text beside a micro-batch, on average."""
        return self.rows_before(_MEASURED, batch_size) / _MEASURED

    def share_of_steps(self, batch_size: int, domain: float, general: float, passes: float) -> float:
        """With `equal_work`, the share of the steps that takes as many tokens as all of them on the domain alone; else 1.

        Args:
            batch_size: rows of the domain in a micro-batch.
            domain, general: tokens of a row.
            passes: what a token of general text costs, in tokens of the domain.
        """
        own = batch_size * domain
        return own / (own + self.mean_rows(batch_size) * general * passes) if self.equal_work else 1.0

    def rows_before(self, number: int, batch_size: int) -> int:
        """Rows of general text beside all micro-batches before that of this number, counted from 0."""
        # A share that is a whole number is one, whatever its last digit.
        return math.floor(number * self.fraction * batch_size + 1e-9) if self.spread else number * self.rows(batch_size)


class GeneralBatches:
    """An endless sequence of batches of general text, every one known by its number alone, so that nothing is to be resumed.

    Args:
        data: rows with ``input_ids`` and ``labels``.
        size: rows in a batch; or how many rows all batches before one have, by its number.
        seed: of their order; each round through the data has another one.
        collate: makes a batch of rows.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        size: int | Callable[[int], int],
        seed: int,
        collate: Callable[[list[Any]], Mapping[str, torch.Tensor]],
    ) -> None:
        self._data = data
        self._before = size if callable(size) else lambda number: number * size
        self._seed = seed
        self._collate = collate
        self._order: tuple[int, list[int]] = (-1, [])

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        """The batch of this number; empty if it has no rows."""
        places = range(self._before(number), self._before(number + 1))
        rows = [self._data[self._place(position)] for position in places]
        return dict(self._collate(rows)) if rows else {}

    def _place(self, position: int) -> int:
        turn, place = divmod(position, len(self._data))
        if self._order[0] != turn:
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + turn)
            self._order = (turn, torch.randperm(len(self._data), generator=generator).tolist())
        return self._order[1][place]


class GeneralTextTrainer(ExtraLossTrainer):
    """Adds ``weight * general_loss(model, batch)`` to the loss, a batch of general text for every micro-batch of the domain.

    Args:
        general: rows of general text.
        options: how much of it.

    Attributes:
        passes: what a token of general text costs, in forward and backward passes of a token of the domain.
    """

    extra_name = "general_loss"
    passes: ClassVar[float] = 1.0

    def __init__(self, *args: Any, general: Any, options: GeneralTextOptions, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.options = options
        size = self.args.per_device_train_batch_size
        self._batches = GeneralBatches(
            general, lambda number: options.rows_before(number, size), self.args.seed, self.data_collator
        )
        self._place_in_window = 0
        if options.equal_work:
            lengths = mean_length(self.train_dataset), mean_length(general)
            share = options.share_of_steps(size, *lengths, self.passes)
            if self.args.max_steps > 0:
                self.args.max_steps = max(1, round(share * self.args.max_steps))
            else:
                self.args.num_train_epochs *= share

    def general_loss(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The loss on a batch of general text (its mean over tokens)."""
        raise NotImplementedError

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None, **kwargs: Any
    ) -> Any:
        """The domain's loss and that on general text; each is a mean of its own, whatever the number of tokens in the other."""
        result = super().compute_loss(
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch, **kwargs
        )
        if not model.training:
            return result
        loss = result[0] if return_outputs else result
        number = self.state.global_step * self.args.gradient_accumulation_steps + self._place_in_window
        self._place_in_window = 0 if self.accelerator.sync_gradients else self._place_in_window + 1
        batch = {key: value.to(loss.device) for key, value in self._batches[number].items()}
        if batch:
            loss = self.added(loss, self.general_loss(model, batch), self.options.weight, num_items_in_batch)
        return (loss, *result[1:]) if return_outputs else loss


def mean_length(rows: Sequence[Mapping[str, Any]]) -> float:
    """Tokens of a row, the mean over many that are evenly spaced."""
    count = min(len(rows), _MEASURED)
    return sum(len(rows[number * len(rows) // count]["input_ids"]) for number in range(count)) / count


@dataclass(frozen=True)
class GeneralTextMethod(Method):
    """A method that trains a new adapter with a `GeneralTextTrainer`; its options are `GeneralTextOptions` or more."""

    needs_general_text = True
    is_plain = False
    one_process = True
    trainer_class: ClassVar[type[GeneralTextTrainer]]

    def make_trainer(self, *, options: GeneralTextOptions, general: Any = None, **kwargs: Any) -> Any:
        return self.trainer_class(**kwargs, options=options, general=general)

    def general_rows(self, options: GeneralTextOptions, batch_size: int) -> int:
        return options.rows(batch_size)

    def share_of_steps(self, options: GeneralTextOptions, batch_size: int, domain: float, general: float) -> float:
        return options.share_of_steps(batch_size, domain, general, self.trainer_class.passes)
