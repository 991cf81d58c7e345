"""The four ways to compute one weight's penalty, and the choice among them.

factored:  Gram matrices of thin factors; for a factored Omega
triton:    one fused kernel launch; CUDA
blocked:   torch, block by block of rows; any device, any format, any dtype
dense:     autograd through the whole difference; for tests and comparisons, never chosen by itself
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.kinds.factored import FactoredOmega
from alora_trainer.importance.kinds.kind import Importance
from alora_trainer.penalty.backends.blocked import PenaltyResult, blocked_penalty
from alora_trainer.penalty.backends.dense import dense_penalty
from alora_trainer.penalty.backends.factored import factored_penalty
from alora_trainer.weights.steps import Factors

_Penalty = Callable[[Importance, Factors, torch.Tensor, torch.Tensor, float], PenaltyResult]


@dataclass(frozen=True)
class Backend:
    """``backend(stored, drift, a, b, scaling)``: one weight's penalty and gradients, computed in the way called `name`."""

    name: str
    penalty: _Penalty

    def __call__(
        self, stored: Importance, drift: Factors, a: torch.Tensor, b: torch.Tensor, scaling: float
    ) -> PenaltyResult:
        """``R = sum Omega * D**2`` with its gradients.

        Args:
            stored: importance, (m, n).
            drift: ``D = theta - theta*`` as factors, (m, k) and (k, n).
            a, b: the adapter's present factors, (r, n) and (m, r), in the dtype of the computation.
            scaling: PEFT's ``scaling``.
        """
        return self.penalty(stored, drift, a, b, scaling)


def choose(
    stored: Importance,
    device: torch.device | str,
    forced: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Backend:
    """The backend for one weight.

    Args:
        stored: its importance.
        device: where its factors are.
        forced: a name in `BACKENDS`, or None for the fastest that fits.
        dtype: that of the computation.

    Raises:
        ALoRAError: the forced backend is unknown, or does not fit the format, the device or the dtype.
    """
    device = torch.device(device)
    if forced is None:
        # Not Triton's interpreter, which is slow: a test forces it.
        fast = ("factored", "triton") if device.type == "cuda" else ("factored",)
        return _backend(next((name for name in fast if _misfit(name, stored, device, dtype) is None), "blocked"))
    if forced not in BACKENDS:
        raise ALoRAError(f"penalty backend {forced!r} is unknown: use one of {', '.join(BACKENDS)}")
    misfit = _misfit(forced, stored, device, dtype)
    if misfit is not None:
        raise ALoRAError(f"penalty backend {forced!r} does not fit: {misfit}; leave the choice open, or use 'blocked'")
    return _backend(forced)


def _misfit(name: str, stored: Importance, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the backend `name` cannot compute this weight's penalty; None if it can."""
    if name == "factored" and not isinstance(stored, FactoredOmega):
        return f"the importance is stored as {stored.format}, not factored"
    if name == "triton":
        return _triton_misfit(stored, device, dtype)
    return None


def _triton_misfit(stored: Importance, device: torch.device, dtype: torch.dtype) -> str | None:
    if stored.format not in ("float32", "bfloat16", "log8"):
        return f"its kernel does not read importance stored as {stored.format}"
    if dtype != torch.float32:
        return f"its kernel computes in float32, and the adapter needs {str(dtype).removeprefix('torch.')}"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the factors are on {device.type}, and the kernel needs CUDA (or TRITON_INTERPRET=1, for tests)"
    return None


def _backend(name: str) -> Backend:
    if name == "triton":
        from alora_trainer.penalty.backends.triton_kernel import triton_penalty

        return Backend(name, triton_penalty)
    return Backend(name, {"factored": factored_penalty, "blocked": blocked_penalty, "dense": dense_penalty}[name])


BACKENDS = ("factored", "triton", "blocked", "dense")
