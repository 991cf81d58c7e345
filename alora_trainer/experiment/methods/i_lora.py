"""I-LoRA: replay, and hidden states that stay near those of a slowly moving average of the adapter (arXiv 2402.18865)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import Trainer

from alora_trainer.basics.files import replacing
from alora_trainer.basics.safetensors_writer import write_tensors
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods.general_text import GeneralTextMethod, GeneralTextOptions, GeneralTextTrainer
from alora_trainer.trainer.part import Part
from alora_trainer.weights.trained_weight import TrainedWeight

AVERAGE_FILE = "average_adapter.safetensors"


@dataclass(frozen=True)
class ILoRAOptions(GeneralTextOptions):
    """Of `i_lora`.

    Attributes:
        decay: of the moving average, at most; it starts lower.
        consistency: weight of the hidden states' distance from the average's.
        result: which adapter is saved, "average" or "trained".
    """

    decay: float = 0.99
    consistency: float = 1.0
    result: str = "average"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.decay < 1:
            raise ALoRAError(f"decay={self.decay!r} must be at least 0 and less than 1")
        if self.consistency < 0:
            raise ALoRAError(f"consistency={self.consistency!r} must not be negative")
        if self.result not in ("average", "trained"):
            raise ALoRAError(f"result={self.result!r} is unknown: use average or trained")


class MovingAverage:
    """``average <- a * average + (1 - a) * adapter`` after every step, with ``a = min(1 - 1 / (t + 1), decay)``.

    Args:
        model: whose trainable parameters are averaged, beginning with what they are now.
        decay: the largest a.
    """

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._decay = decay
        self.values = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step `step`, counted from 1."""
        keep = min(1 - 1 / (step + 1), self._decay)
        for name, value in self.values.items():
            value.mul_(keep).add_(self._parameters[name].detach(), alpha=1 - keep)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model with the average for its weights, and afterwards with its own again."""
        own = {name: p.data for name, p in self._parameters.items()}
        try:
            for name, parameter in self._parameters.items():
                parameter.data = self.values[name]
            yield
        finally:
            for name, parameter in self._parameters.items():
                parameter.data = own[name]

    @torch.no_grad()
    def take_over(self) -> None:
        """Give the model the average for good."""
        for name, parameter in self._parameters.items():
            parameter.copy_(self.values[name])

    def save(self, folder: str | Path) -> None:
        """Write the average into a checkpoint folder; the file appears whole or not at all."""
        path = Path(folder) / AVERAGE_FILE
        with replacing(path) as partial:
            write_tensors(partial, self.values, {})

    def load(self, folder: str | Path) -> None:
        """Go on with what `save` wrote.

        Raises:
            ALoRAError: the checkpoint has no average, or one of another adapter.
        """
        path = Path(folder) / AVERAGE_FILE
        try:
            saved = load_file(path)
        except (FileNotFoundError, SafetensorError) as error:
            raise ALoRAError(f"{folder} has no whole {AVERAGE_FILE}: begin this training anew") from error
        if saved.keys() != self.values.keys():
            raise ALoRAError(f"{path} is of another adapter: begin this training anew")
        for name, value in self.values.items():
            value.copy_(saved[name])


def consistency_loss(hidden: tuple[torch.Tensor, ...], reference: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The mean squared difference of hidden states, over all layers, places and features."""
    return torch.stack([(h.float() - r.float()).square().mean() for h, r in zip(hidden, reference, strict=True)]).mean()


class Averaging(Part):
    """Keeps the average of what trains beside the training, and leaves the model with it at the end, if that is the result.

    Args:
        options: the average's decay, and which adapter is the result.

    Attributes:
        average: of the training that is under way.
    """

    average: MovingAverage

    def __init__(self, options: ILoRAOptions) -> None:
        self._options = options

    def begin(self, trainer: Trainer, weights: Sequence[TrainedWeight], *, resumes: bool) -> None:
        self._trainer: Any = trainer
        self.average = MovingAverage(trainer.model, self._options.decay)

    def load(self, folder: str) -> None:
        self.average.load(folder)

    def save(self, folder: str) -> None:
        if self._trainer.args.should_save:
            self.average.save(folder)

    def end_of_step(self, *, last: bool) -> dict[str, float]:
        self.average.update(self._trainer.state.global_step)
        return {}

    def end(self) -> dict[str, float]:
        if self._options.result == "average":
            self.average.take_over()
        return {}


class ILoRATrainer(GeneralTextTrainer):
    """``L = L_domain + weight * (L_general + consistency * ||h(adapter) - h(average)||**2)``, the latter on general text."""

    options: ILoRAOptions
    passes = 4 / 3  # the average's forward pass is half a backward pass

    def __init__(self, *args: Any, options: ILoRAOptions, **kwargs: Any) -> None:
        self._averaging = Averaging(options)
        super().__init__(*args, options=options, parts=[self._averaging], **kwargs)

    def general_loss(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with self._averaging.average.in_place(), torch.no_grad():
            reference = model(**batch, output_hidden_states=True).hidden_states
        outputs = model(**batch, output_hidden_states=True)
        return outputs.loss + self.options.consistency * consistency_loss(outputs.hidden_states, reference)


@dataclass(frozen=True)
class ILoRA(GeneralTextMethod):
    """Trains with `ILoRATrainer`."""

    options_class = ILoRAOptions
    trainer_class = ILoRATrainer


I_LORA = ILoRA(
    "i_lora", "LoRA with replay, tied to a moving average of itself, which is the result", starts_from="fresh"
)
