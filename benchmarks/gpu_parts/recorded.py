"""Correctness of recording: side stream, host memory, late folding and files on disk, against the plain way in float64.

One training is watched by all recorders at once. The plain way holds every step's matrices whole, and no stream.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from alora_trainer.importance.recording.recorder import Recorder
from alora_trainer.weights.adapted import AdaptedWeight
from alora_trainer.weights.trained_weight import Matrices, learning_rates
from gpu_parts.cases import Cases, relative
from gpu_parts.schedule import Budget, Figures
from gpu_parts.settings import ATTENTION, Settings
from gpu_parts.training import Training

XI = 1e-3
STEPS = 8
# Relative, in the Frobenius norm, of Omega: a sum of float32 products, of which a part cancels.
TOLERANCE = 1e-5


class PlainWay:
    """Eq. 13-15 of arXiv 2501.13669 as they are written, in float64."""

    def __init__(self, weights: list[AdaptedWeight], estimator: str) -> None:
        self._weights, self._estimator = weights, estimator
        self._w = {w.name: torch.zeros(w.shape, dtype=torch.float64, device=w.device) for w in weights}
        self._start = {w.name: self._whole(w) for w in weights}

    @staticmethod
    def _whole(weight: AdaptedWeight) -> torch.Tensor:
        return weight.scaling * weight.b.double() @ weight.a.double()

    def before_step(self, gradients: dict[str, Matrices], rate: float) -> None:
        self._rate = rate
        self._before = {w.name: self._whole(w) for w in self._weights}
        self._gradient = {}
        for w in self._weights:
            by_a, by_b = (gradient.double() for gradient in gradients[w.name])
            a, b = w.a.double(), w.b.double()
            self._gradient[w.name] = w.scaling * (by_b @ a + b @ by_a - rate * by_b @ by_a)

    def after_step(self) -> None:
        for w in self._weights:
            gradient = self._gradient[w.name]
            moved = self._whole(w) - self._before[w.name] if self._estimator == "path" else -self._rate * gradient
            self._w[w.name] -= gradient * moved

    def omega(self) -> dict[str, torch.Tensor]:
        return {
            w.name: self._w[w.name].clamp_min(0) / ((self._whole(w) - self._start[w.name]) ** 2 + XI)
            for w in self._weights
        }


def small_training(settings: Settings) -> Training:
    """Of a Llama in float32, wide enough on a GPU that a fold is still going on when the next step begins."""
    width, layers = (64, 2) if settings.quick else (2048, 4)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=2 * width
    )
    with torch.device(settings.device):
        base = LlamaForCausalLM(config)
    return Training(base, ATTENTION, batch=2, length=16, device=settings.device)


def correct_recording(settings: Settings, figures: Figures, budget: Budget) -> None:
    """Eight steps of AdamW, watched in every way; then every way's Omega beside the plain one."""
    training = small_training(settings)
    with tempfile.TemporaryDirectory() as folder:
        ways: dict[str, dict[str, Any]] = {
            "on the device": {},
            "on the device, 3 steps a fold": {"fold_every": 3},
            "in host memory": {"location": "cpu"},
            "in host memory, 3 steps a fold": {"location": "cpu", "fold_every": 3},
            "on disk": {"location": "disk"},
        }
        recorders = {}
        for estimator in ("path", "paper"):
            for way, how in ways.items():
                place = {"folder": Path(folder) / estimator} if how.get("location") == "disk" else {}
                recorders[estimator, way] = Recorder(training.weights, estimator, XI, **how, **place)
        plain = {estimator: PlainWay(training.weights, estimator) for estimator in ("path", "paper")}
        _watched(training, recorders, plain)
        cases = Cases(figures, budget)
        for (estimator, way), recorder in recorders.items():
            stream = "its own stream" if settings.cuda else "no stream: there is none on a CPU"
            expected = plain[estimator].omega()
            cases.compare(
                f"{estimator}, {way}", TOLERANCE, lambda r=recorder, e=expected: _worst(r.finish(), e), folded_on=stream
            )
    cases.finish()


def _watched(training: Training, recorders: dict[Any, Recorder], plain: dict[str, PlainWay]) -> None:
    rates = learning_rates(training.optimizer)
    for _ in range(STEPS):
        training.optimizer.zero_grad()
        training.model(input_ids=training.ids, labels=training.ids).loss.backward()
        gradients = {w.name: w.gradients(1.0) for w in training.weights}
        for watcher in plain.values():
            watcher.before_step(gradients, next(iter(rates.values())))
        for recorder in recorders.values():
            recorder.before_step(gradients, rates)
        training.optimizer.step()
        for recorder in recorders.values():
            recorder.after_step()
        for watcher in plain.values():
            watcher.after_step()


def _worst(got: dict[str, Any], expected: dict[str, torch.Tensor]) -> float:
    return max(relative(got[name], omega) for name, omega in expected.items())
