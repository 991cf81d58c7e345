"""LaLoRA: LoRA whose factors are held by a Laplace approximation around where they begin (docs/methods/lalora.md)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import Trainer

from alora_trainer.basics.modes import evaluation_mode
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods.method import Method
from alora_trainer.experiment.methods.starts import batches, linear_weights
from alora_trainer.trainer.mixin import ALoRATrainer
from alora_trainer.trainer.part import Part
from alora_trainer.weights.trained_weight import TrainedWeight

DIAGONAL, KRONECKER = "diagonal", "kronecker"


@dataclass(frozen=True)
class LaLoRAOptions:
    """Of `lalora`.

    Attributes:
        strength: lambda, what half of the quadratic form is multiplied by.
        curvature: "diagonal" or "kronecker", of each factor on its own.
        samples: rows of general text that it is estimated on.

    Raises:
        ALoRAError: a number is out of range, or the curvature unknown.
    """

    strength: float = 1.0
    curvature: str = DIAGONAL
    samples: int = 256

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ALoRAError(f"strength={self.strength!r} must not be negative")
        if self.curvature not in (DIAGONAL, KRONECKER):
            raise ALoRAError(f"curvature={self.curvature!r} is unknown: use {DIAGONAL} or {KRONECKER}")
        if self.samples < 1:
            raise ALoRAError(f"samples={self.samples!r} must be at least 1")


@dataclass
class HeldFactor:
    """One factor of an adapter, A or B, as a matrix (outputs, inputs).

    Attributes:
        layer: the linear layer that it is the weight of.
        beginning: its value as the training began.
        elements: the mean squared gradient of each element; of "diagonal".
        outputs, inputs: E[h h'] of the gradients by the layer's outputs, and of its inputs; of "kronecker".
    """

    layer: torch.nn.Module
    beginning: torch.Tensor
    elements: torch.Tensor | None = None
    outputs: torch.Tensor | None = None
    inputs: torch.Tensor | None = None

    @property
    def weight(self) -> torch.Tensor:
        """The factor itself."""
        value: torch.Tensor = self.layer.weight  # type: ignore[assignment]
        return value

    def form(self) -> torch.Tensor:
        """The quadratic form of its movement."""
        moved = self.weight.float() - self.beginning
        if self.elements is not None:
            return (self.elements * moved.square()).sum()
        assert self.outputs is not None and self.inputs is not None
        return ((self.outputs @ moved) * (moved @ self.inputs)).sum()


class LaplaceOfFactors(Part):
    """Adds ``lambda / 2 * sum (theta - theta0)' F (theta - theta0)`` over all factors to the loss of an optimizer step.

    F is the Fisher information of the factors, a token, where the training begins; labels are drawn from the model itself.

    Args:
        options: how strong, and of what form F is.
        general: rows of general text.
    """

    def __init__(self, options: LaLoRAOptions, general: Any) -> None:
        self._options = options
        self._general = general
        self.held: list[HeldFactor] = []

    def before_training(self, trainer: Trainer, weights: Sequence[TrainedWeight], *, resumes: bool) -> None:
        # The model is as it was made, whether or not a checkpoint is loaded next, and chance begins with the same seed.
        model: Any = trainer.accelerator.unwrap_model(trainer.model)
        layers = []
        for weight in linear_weights(model):
            # While B is zero nothing depends on A: its Fisher information is zero, and nothing holds it.
            layers += [weight.layer.lora_A[weight.adapter]] if bool(weight.b.any()) else []
            layers.append(weight.layer.lora_B[weight.adapter])
        self.held = [HeldFactor(layer, layer.weight.detach().float().clone()) for layer in layers]
        one_by_one = self._options.curvature == DIAGONAL
        text = batches(
            self._general, self._options.samples, trainer.data_collator, trainer.args.device, 1 if one_by_one else 8
        )
        generator = torch.Generator(device="cpu").manual_seed(trainer.args.seed)
        tokens = 0
        with evaluation_mode(model):
            for batch in text:
                add = _add_squares if one_by_one else _add_products
                tokens += add(model, self.held, batch, generator)
        for factor in self.held:
            if factor.elements is not None:
                factor.elements /= tokens
            if factor.outputs is not None and factor.inputs is not None:
                factor.outputs /= tokens
                factor.inputs /= tokens

    def loss_term(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        forms = torch.stack([factor.form().to(device) for factor in self.held])
        return (self._options.strength / 2 * forms.sum()).to(dtype)


def sampled_loss(logits: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, int]:
    """Minus the log-likelihood, summed, of labels drawn from the model's own predictions; and their number.

    Args:
        logits: (B, T, V); the last token's predict nothing.
        generator: on the CPU.
    """
    predictions = logits[:, :-1].flatten(0, 1).float()
    drawn = torch.multinomial(predictions.detach().softmax(-1).cpu(), 1, generator=generator).flatten()
    return functional.cross_entropy(predictions, drawn.to(logits.device), reduction="sum"), len(drawn)


def _add_squares(model: Any, held: Sequence[HeldFactor], batch: Any, generator: torch.Generator) -> int:
    """Add the squared gradient of one sequence to every factor's `elements`; its number of predictions."""
    loss, tokens = sampled_loss(model(input_ids=batch["input_ids"]).logits, generator)
    gradients = torch.autograd.grad(loss, [factor.weight for factor in held])
    for factor, gradient in zip(held, gradients, strict=True):
        square = gradient.float().square()
        factor.elements = square if factor.elements is None else factor.elements + square
    return tokens


def _add_products(model: Any, held: Sequence[HeldFactor], batch: Any, generator: torch.Generator) -> int:
    """Add the outer products of a batch to every factor's `outputs` and `inputs`; its number of predictions."""
    with _watching(held) as seen:
        loss, tokens = sampled_loss(model(input_ids=batch["input_ids"]).logits, generator)
        gradients = torch.autograd.grad(loss, [outputs for _, outputs in seen])
    places = batch["input_ids"].numel()
    for factor, (inputs, _), gradient in zip(held, seen, gradients, strict=True):
        x, g = (tensor.detach().flatten(0, -2).float() for tensor in (inputs, gradient))
        # The inputs' mean is over all places, the gradients' over those that predict (in the end).
        share = tokens / places
        outer, inner = g.T @ g, x.T @ x * share
        factor.outputs = outer if factor.outputs is None else factor.outputs + outer
        factor.inputs = inner if factor.inputs is None else factor.inputs + inner
    return tokens


@contextmanager
def _watching(held: Sequence[HeldFactor]) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Inputs and outputs of every factor's layer in a forward pass, in the factors' order once it is over."""
    found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(layer: torch.nn.Module, inputs: Any, outputs: torch.Tensor) -> None:
        found[id(layer)] = (inputs[0], outputs)
        if len(found) == len(held):
            seen[:] = [found[id(factor.layer)] for factor in held]

    handles = [factor.layer.register_forward_hook(keep) for factor in held]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class LaLoRA(Method):
    """Trains a plain adapter with `LaplaceOfFactors`."""

    options_class = LaLoRAOptions
    needs_general_text = True
    is_plain = False
    one_process = True

    def make_trainer(self, *, options: LaLoRAOptions, general: Any = None, **kwargs: Any) -> Any:
        return ALoRATrainer(**kwargs, parts=[LaplaceOfFactors(options, general)])


LALORA = LaLoRA("lalora", "LaLoRA: LoRA whose factors are held by their Fisher information", starts_from="fresh")
