"""A LoRA training on random tokens, made on the device, whose step is plain, recorded (stage A) or held (stage B)."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from alora_trainer.importance.kinds.kind import Importance
from alora_trainer.importance.recording.recorder import Recorder
from alora_trainer.penalty import QuadraticPenalty
from alora_trainer.penalty.loss_term import penalty_loss
from alora_trainer.weights.adapted import adapted_weights
from alora_trainer.weights.reference import Reference
from alora_trainer.weights.theta import AdapterTheta
from alora_trainer.weights.trained_weight import learning_rates
from gpu_parts.importance import MadeMap
from gpu_parts.settings import ALPHA, RANK, Settings

LAM = 0.1
Found = TypeVar("Found")


def base_model(kind: str, shape: dict[str, Any], settings: Settings) -> Any:
    """A model of this shape with random weights, made where it stays and in the dtype that it keeps."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **shape, use_cache=False)
    with torch.device(settings.device):
        return AutoModelForCausalLM.from_config(config, dtype=settings.dtype)


class Training:
    """One model with a LoRA adapter (r 8, alpha 32, its factors in float32 as PEFT makes them), AdamW, and one batch.

    Args:
        base: the model.
        targets: names of the layers that are adapted.
        batch, length: of the random tokens.
        device: where all of it is.
    """

    def __init__(self, base: Any, targets: list[str], *, batch: int, length: int, device: str) -> None:
        torch.manual_seed(1)
        self.device = device
        self.model = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets))
        self.weights = adapted_weights(self.model)
        for weight in self.weights:
            weight.parameter_b.data.normal_(std=0.01)
        self.factors = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.factors, lr=1e-4)
        self.vocabulary = base.config.vocab_size
        self.take(batch, length)

    def take(self, batch: int, length: int) -> None:
        """Go on with a batch of this size."""
        self.ids = torch.randint(0, self.vocabulary, (batch, length), device=self.device)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        return [weight.shape for weight in self.weights]

    @property
    def elements(self) -> int:
        return sum(m * n for m, n in self.shapes)

    def penalty(self, made: Callable[[tuple[int, int]], Importance], *, streamed: bool = False) -> QuadraticPenalty:
        """What holds the weights at where they are now, by importance that is made for every weight's shape."""
        omega: Mapping[str, Importance] = {weight.name: made(weight.shape) for weight in self.weights}
        here = {w.name: Reference(w.a.clone(), w.b.clone(), w.scaling) for w in self.weights}
        return QuadraticPenalty(self.weights, MadeMap(omega, AdapterTheta(here)), lam=LAM, streamed=streamed)

    def recorder(self, **settings: Any) -> Recorder:
        return Recorder(self.weights, "projected", 1e-3, **settings)

    def plain(self) -> None:
        self._backward(None)
        self.optimizer.step()

    def held(self, penalty: QuadraticPenalty) -> None:
        self._backward(penalty)
        self.optimizer.step()

    def recorded(self, recorder: Recorder) -> None:
        self._backward(None)
        recorder.before_step({w.name: w.gradients(1.0) for w in self.weights}, learning_rates(self.optimizer))
        self.optimizer.step()
        recorder.after_step()

    def penalty_alone(self, penalty: QuadraticPenalty) -> None:
        """What a held step does and a plain one does not."""
        zero = torch.zeros((), device=self.device, requires_grad=True)
        (zero + penalty_loss(self.weights, penalty.evaluate(), zero.dtype, zero.device)).backward()

    def _backward(self, penalty: QuadraticPenalty | None) -> None:
        self.optimizer.zero_grad()
        if penalty is not None:
            penalty.begin()
        loss = self.model(input_ids=self.ids, labels=self.ids).loss
        if penalty is not None:
            loss = loss + penalty_loss(self.weights, penalty.evaluate(), loss.dtype, loss.device)
        loss.backward()


def clear_up(device: str) -> None:
    """Give a GPU's memory back that nothing holds any more; raises if it does not answer."""
    torch._dynamo.reset()
    if device == "cuda":
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def halving(settings: Settings, work: Callable[[int], Found], batch: int) -> tuple[int, Found]:
    """What `work` gives for the largest batch that it does not run out of memory with: `batch`, or a half of it, and so on."""
    while True:
        try:
            return batch, work(batch)
        except torch.cuda.OutOfMemoryError:
            if batch == 1:
                raise
        batch = batch // 2  # outside of the handler, whose error still holds the failed step's tensors
        clear_up(settings.device)
