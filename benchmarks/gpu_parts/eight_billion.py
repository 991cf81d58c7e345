"""Llama-3.1-8B's shapes with LoRA on all linear layers, in bf16 and, where bitsandbytes can be imported, over NF4."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn

from gpu_parts.importance import KRONECKER, all_made
from gpu_parts.schedule import Budget, Figures
from gpu_parts.settings import EIGHT_BILLION, TARGETS, Settings
from gpu_parts.steps import costs_of
from gpu_parts.training import base_model, clear_up

# float32 importance alone would take 28 GB.
HELD = ("log8", "factored", KRONECKER)


def eight_billion(settings: Settings, figures: Figures, budget: Budget) -> None:
    """A part: NF4 first, which is how an 8B is tuned on one card; then bf16."""
    kind, shape = settings.shape(EIGHT_BILLION)
    figures |= {"model": EIGHT_BILLION, "shape": shape, "targets": "all linear"}
    made = {name: make for name, make in all_made(settings.device).items() if name in HELD}
    for form in ("nf4", "bfloat16"):
        figures[form] = {}
        if form == "nf4" and importlib.util.find_spec("bitsandbytes") is None:
            figures[form]["skipped"] = "bitsandbytes is not installed"
            continue
        reason = budget.fits(25 if settings.cuda else 0)
        if reason:
            figures[form]["skipped"] = reason
            continue
        base = base_model(kind, shape, settings)
        if form == "nf4":
            in_nf4(base)
        figures[form]["base_bytes"] = sum(p.nbytes for p in base.parameters())
        costs_of(base, TARGETS[kind]["all linear"], made, settings, figures[form], budget)
        del base
        clear_up(settings.device)


def in_nf4(base: Any) -> None:
    """Put every linear layer but the head into 4-bit NormalFloat, in place, as transformers does while it loads a model."""
    import bitsandbytes

    for name, layer in list(base.named_modules()):
        if not isinstance(layer, nn.Linear) or layer is base.get_output_embeddings():
            continue
        quantized = bitsandbytes.nn.Linear4bit(
            layer.in_features, layer.out_features, bias=layer.bias is not None, compute_dtype=torch.bfloat16,
            quant_type="nf4", device="meta",
        )  # fmt: skip
        weight = layer.weight.data
        quantized.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4").to(weight.device)
        if layer.bias is not None:
            quantized.bias = layer.bias
        parent, _, own = name.rpartition(".")
        setattr(base.get_submodule(parent), own, quantized)
    base.is_loaded_in_4bit = True
