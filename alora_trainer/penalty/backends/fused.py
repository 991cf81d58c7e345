"""The fused kernel as a backend: when it can be used. Triton itself is imported when the kernel first runs."""

from __future__ import annotations

import importlib.util
import os

import torch

from alora_trainer.importance.kinds.elementwise import Elementwise
from alora_trainer.importance.kinds.kind import Importance
from alora_trainer.penalty.backends.backend import Backend, PenaltyResult
from alora_trainer.penalty.backends.pull import pull_back
from alora_trainer.weights.steps import Factors


def _fused_penalty(
    importance: Importance, drift: Factors, a: torch.Tensor, b: torch.Tensor, scaling: float
) -> PenaltyResult:
    from alora_trainer.penalty.backends.triton_kernel import triton_penalty

    return triton_penalty(importance, drift, a, b, scaling)


def _misfit(importance: Importance, device: torch.device, dtype: torch.dtype) -> str | None:
    coded = importance.coded_elements if isinstance(importance, Elementwise) else None
    if coded is None or (coded.scales is None and coded.numbers.dtype not in (torch.float32, torch.bfloat16)):
        return f"its kernel does not read importance stored as {importance.format}"
    if dtype != torch.float32:
        return f"its kernel computes in float32, and the adapter needs {str(dtype).removeprefix('torch.')}"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the factors are on {device.type}, and the kernel needs CUDA (or TRITON_INTERPRET=1, for tests)"
    return None


# Without being named on CUDA alone: Triton's interpreter, which runs anywhere, is slow.
TRITON = Backend("triton", _fused_penalty, _misfit, preference=200, devices=("cuda",), pull=pull_back)
