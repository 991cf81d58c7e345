"""Trainings that see general text beside the domain: which batch comes when, and how its loss enters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods.method import Method
from alora_trainer.trainer.mixin import ALoRATrainer
from alora_trainer.trainer.running_losses import number_from


@dataclass(frozen=True)
class GeneralTextOptions:
    """Of all methods that see general text while they train on the domain.

    Attributes:
        fraction: sequences of general text in a micro-batch, as a share of its domain sequences (at least one).
        weight: what the loss on general text is multiplied by.

    Raises:
        ALoRAError: a number is out of range.
    """

    fraction: float = 0.1
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ALoRAError(f"fraction={self.fraction!r} must lie between 0 and 1")
        if self.weight < 0:
            raise ALoRAError(f"weight={self.weight!r} must not be negative")

    def rows(self, batch_size: int) -> int:
        """Rows of general text beside a micro-batch of `batch_size` rows of the domain."""
        return max(1, round(self.fraction * batch_size))


class GeneralBatches:
    """An endless sequence of batches of general text, every one known by its number alone, so that nothing is to be resumed.

    Args:
        data: rows with ``input_ids`` and ``labels``.
        size: rows in a batch.
        seed: of their order; each round through the data has another one.
        collate: makes a batch of rows.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        size: int,
        seed: int,
        collate: Callable[[list[Any]], Mapping[str, torch.Tensor]],
    ) -> None:
        self._data = data
        self._size = size
        self._seed = seed
        self._collate = collate
        self._order: tuple[int, list[int]] = (-1, [])

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        first = number * self._size
        rows = [self._data[self._place(position)] for position in range(first, first + self._size)]
        return dict(self._collate(rows))

    def _place(self, position: int) -> int:
        turn, place = divmod(position, len(self._data))
        if self._order[0] != turn:
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + turn)
            self._order = (turn, torch.randperm(len(self._data), generator=generator).tolist())
        return self._order[1][place]


class GeneralTextTrainer(ALoRATrainer):
    """Adds ``weight * general_loss(model, batch)`` to the loss, a batch of general text for every micro-batch of the domain.

    Args:
        general: rows of general text.
        options: how much of it.
    """

    def __init__(self, *args: Any, general: Any, options: GeneralTextOptions, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.options = options
        size = options.rows(self.args.per_device_train_batch_size)
        self._batches = GeneralBatches(general, size, self.args.seed, self.data_collator)
        self._place_in_window = 0
        self._general_losses: list[torch.Tensor] = []

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
        steps = self.current_gradient_accumulation_steps
        number = self.state.global_step * self.args.gradient_accumulation_steps + self._place_in_window
        self._place_in_window = 0 if self.accelerator.sync_gradients else self._place_in_window + 1
        batch = {key: value.to(loss.device) for key, value in self._batches[number].items()}
        general = self.general_loss(model, batch)
        self._general_losses.append(general.detach().float())
        # After the trainer's own division, the window's micro-batches add up to the mean of their losses.
        loss = loss + self.options.weight * general * (self.loss_divisor(num_items_in_batch) / steps)
        return (loss, *result[1:]) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds `general_loss` to the training log."""
        if self._general_losses and "loss" in logs:
            logs["general_loss"] = float(torch.stack(self._general_losses).mean())
            self._general_losses = []
        super().log(logs, *args, **kwargs)

    def unlogged_losses(self) -> dict[str, Any]:
        return super().unlogged_losses() | {"general_losses": [float(loss) for loss in self._general_losses]}

    def take_unlogged_losses(self, state: Mapping[str, Any]) -> None:
        super().take_unlogged_losses(state)
        kept = state.get("general_losses", [])
        self._general_losses = [torch.tensor(number_from(loss), device=self.args.device) for loss in kept]


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
