"""LoRA-Pro: gradients of A and B that together move W as its own gradient would, as far as they can (arXiv 2407.18242)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods.method import Method
from alora_trainer.trainer.mixin import ALoRATrainer
from alora_trainer.weights.adapted import adapted_weights


@dataclass(frozen=True)
class LoRAProOptions:
    """Of `lora_pro`.

    Attributes:
        solution: "sylvester" takes the factors' gradients nearest to LoRA's own, "zero" the simplest ones (X = 0).
        damping: added to the diagonals of ``B'B`` and ``AA'`` before they are inverted.
    """

    solution: str = "sylvester"
    damping: float = 1e-8

    def __post_init__(self) -> None:
        if self.solution not in ("sylvester", "zero"):
            raise ALoRAError(f"solution={self.solution!r} is unknown: use sylvester or zero")
        if self.damping <= 0:
            raise ALoRAError(f"damping={self.damping!r} must be positive")


def corrected_gradients(
    a: torch.Tensor,
    b: torch.Tensor,
    gradient_a: torch.Tensor,
    gradient_b: torch.Tensor,
    scaling: float,
    options: LoRAProOptions,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients (gA', gB') whose ``s (B gA' + gB' A)`` is the nearest of that form to the gradient of W.

    ``gA' = (B'B)^-1 gA / s**2 + X A`` and ``gB' = (1 - B (B'B)^-1 B') gB (A A')^-1 / s**2 - B X``, where X does not change the
    movement of W; "sylvester" takes the one that leaves both nearest to gA and gB:
    ``B'B X + X A A' = -(B'B)^-1 gA A' / s**2``.

    Args:
        a, gradient_a: (r, n).
        b, gradient_b: (m, r).
        scaling: PEFT's ``scaling`` s.
        options: which X, and the damping of both inverses.

    Returns:
        In the dtype that came in; computed in float64, since the inverses of small B are large.
    """
    dtype = gradient_a.dtype
    a, b, gradient_a, gradient_b = (t.double() for t in (a, b, gradient_a, gradient_b))
    gram_a, gram_b = a @ a.T, b.T @ b
    damping = options.damping * torch.eye(a.shape[0], dtype=a.dtype, device=a.device)
    from_a = torch.linalg.solve(gram_b + damping, gradient_a) / scaling**2
    new_b = torch.linalg.solve(gram_a + damping, gradient_b.T).T / scaling**2
    new_b = new_b - b @ torch.linalg.solve(gram_b + damping, b.T @ new_b)
    if options.solution == "zero":
        return from_a.to(dtype), new_b.to(dtype)
    x = solve_sylvester(gram_b, gram_a, -from_a @ a.T, options.damping)
    return (from_a + x @ a).to(dtype), (new_b - b @ x).to(dtype)


def solve_sylvester(p: torch.Tensor, q: torch.Tensor, c: torch.Tensor, damping: float = 0.0) -> torch.Tensor:
    """X of ``P X + X Q = C`` for symmetric P and Q without a common negative of an eigenvalue, by their eigenvectors."""
    p_values, p_vectors = torch.linalg.eigh(p)
    q_values, q_vectors = torch.linalg.eigh(q)
    return p_vectors @ ((p_vectors.T @ c @ q_vectors) / (p_values[:, None] + q_values[None] + damping)) @ q_vectors.T


class LoRAProTrainer(ALoRATrainer):
    """Corrects the factors' gradients before every step of whatever optimizer there is.

    Args:
        options: see `LoRAProOptions`.
    """

    def __init__(self, *args: Any, options: LoRAProOptions, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.options = options
        self.add_callback(_Correction(self))

    @torch.no_grad()
    def correct_gradients(self) -> None:
        """Replace the gradients of all factors; after clipping, before the optimizer."""
        for weight in adapted_weights(self.accelerator.unwrap_model(self.model)):
            pair = (weight.parameter_a, weight.parameter_b)
            if any(parameter.grad is None for parameter in pair):
                continue
            gradient_a, gradient_b = (parameter.grad.flatten(1) for parameter in pair)  # type: ignore[union-attr]
            corrected = corrected_gradients(weight.a, weight.b, gradient_a, gradient_b, weight.scaling, self.options)
            for parameter, gradient in zip(pair, corrected, strict=True):
                parameter.grad.copy_(gradient.view_as(parameter))  # type: ignore[union-attr]


class _Correction(TrainerCallback):
    def __init__(self, trainer: LoRAProTrainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.correct_gradients()


@dataclass(frozen=True)
class LoRAPro(Method):
    """Trains with `LoRAProTrainer`."""

    options_class = LoRAProOptions
    is_plain = False
    one_process = True

    def make_trainer(self, *, options: LoRAProOptions, general: Any = None, **kwargs: Any) -> Any:
        return LoRAProTrainer(**kwargs, options=options)


LORA_PRO = LoRAPro("lora_pro", "LoRA with LoRA-Pro's gradient correction", starts_from="fresh")
