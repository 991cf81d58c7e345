"""The trainings that one process and two processes both do, and that must come out alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from alora_trainer import ALoRAConfig, ALoRATrainer, ImportanceMap
from alora_trainer.artefact.provenance import map_at_present
from alora_trainer.importance.origin import ImportanceInfo
from alora_trainer.weights.adapted import adapted_weights
from tests.dense_metric import random_importance
from tests.tiny_training import move_factors, quiet_arguments, tiny_llama, token_rows, with_lora

RECORDED: dict[str, dict[str, Any]] = {
    "path": {"record": "path"},
    "paper": {"record": "paper", "fold_every": 2},
    "exact": {"record": "exact"},
    "tokens": {"record": "path", "record_tokens": 60, "omega_device": "disk"},
    "full": {"record": "path", "full_parameters": True},
}
PROTECTED: dict[str, dict[str, Any]] = {
    "coupled": {"lam": 0.5},
    "decoupled": {"lam": 0.5, "application": "decoupled"},
    "auto": {"lam": "auto"},
    "budget": {"budget": 0.001, "probe_steps": 1},
    "curvature": {"lam": 0.5, "layer_weights": "none"},
    "curvature, decoupled": {"lam": 0.5, "application": "decoupled", "layer_weights": "none"},
    "predicted": {"budget": 0.001, "probe_steps": 2, "layer_weights": "none"},
    "uniform": {"lam": 0.5, "missing": "uniform"},
}
# Of these, those that are given their map by its place, too.
READ = ("coupled", "curvature, decoupled", "uniform")
# Recording while protecting.
AT_ONCE: dict[str, dict[str, Any]] = {"coupled and paper": {"lam": 0.5, "record": "paper"}}


def build() -> Any:
    return with_lora(tiny_llama(), moved=True)


def reference_map(model: Any) -> ImportanceMap:
    """Random importance with theta* at the model's present adapter."""
    generator = torch.Generator().manual_seed(5)
    weights = adapted_weights(model)
    omega = {w.name: torch.rand(w.shape, generator=generator) for w in weights}
    return map_at_present(model, weights, omega, ImportanceInfo())


def curvature_map(model: Any) -> ImportanceMap:
    """The same with Kronecker products, as an estimate of curvature would be."""
    weights = adapted_weights(model)
    omega = {w.name: random_importance("kronecker", *w.shape, (3, 3), 7 * i) for i, w in enumerate(weights)}
    return map_at_present(model, weights, omega, ImportanceInfo(estimator="kronecker"))


def map_of(name: str, model: Any) -> ImportanceMap:
    """The map that holds the training `name`: for "uniform", one that lacks a weight."""
    importance = curvature_map(model) if name.startswith(("curvature", "predicted")) else reference_map(model)
    return importance.select(sorted(importance)[1:]) if name == "uniform" else importance


def recorded_trainer(name: str, folder: Path, *, batch: int, **settings: Any) -> ALoRATrainer:
    config = ALoRAConfig(**RECORDED[name])
    model = tiny_llama() if config.full_parameters else with_lora(tiny_llama(), moved=True)
    return _trainer(model, folder, batch, settings, alora=config)


def protected_trainer(
    name: str, folder: Path, *, batch: int, place: Path | None = None, **settings: Any
) -> ALoRATrainer:
    """`place`: the folder where the maps are kept, to give one by its place; None gives the map itself."""
    model = build()
    importance: Any = map_of(name, model)
    if place is not None:
        importance = place / f"map of {name}"
    move_factors(model, 0.05)
    config = ALoRAConfig(**(PROTECTED | AT_ONCE)[name])
    probe = token_rows(items=5, seed=11) if config.budget is not None else None
    settings = {"gradient_accumulation_steps": 2, "learning_rate": 0.01} | settings
    return _trainer(model, folder, batch, settings, alora=config, importance=importance, probe_dataset=probe)


def _trainer(model: Any, folder: Path, batch: int, settings: dict[str, Any], **ours: Any) -> ALoRATrainer:
    common: dict[str, Any] = {
        "per_device_train_batch_size": batch,
        "train_sampling_strategy": "sequential",
        "max_steps": 3,
    }
    common |= {"learning_rate": 0.02, "ddp_find_unused_parameters": False}
    args = quiet_arguments(str(folder), **(common | settings))
    return ALoRATrainer(model, args, train_dataset=token_rows(items=32), **ours)


def trained(trainer: Any) -> dict[str, torch.Tensor]:
    """What training has moved, by parameter name."""
    return {f"parameter {name}": p for name, p in trainer.model.named_parameters() if p.requires_grad}


def logged(trainer: Any) -> list[dict[str, float]]:
    """The lines of the training log, without what depends on the machine's speed."""
    return [line for line in trainer.state.log_history if "train_runtime" not in line]
