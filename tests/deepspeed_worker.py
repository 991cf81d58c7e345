"""Two processes under DeepSpeed's ZeRO on the CPU, for `test_deepspeed`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from alora_trainer import ALoRAError
from alora_trainer.weights.sharding import gathered
from tests.process_cases import logged, protected_trainer, recorded_trainer, trained

FOLDER = Path(sys.argv[1])


def at_once(folder: Path, **settings: Any) -> Any:
    """Recording, by an estimator that asks for the learning rate, while protecting and over two micro-batches."""
    trainer = protected_trainer("coupled and paper", folder, **settings)
    assert trainer.args.gradient_accumulation_steps == 2
    return trainer


CASES: dict[str, Callable[..., Any]] = {
    "protect": partial(protected_trainer, "coupled"),
    "record": partial(recorded_trainer, "path"),
    "at once": at_once,
}


def zero(stage: int) -> dict[str, Any]:
    auto = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size", "gradient_clipping")
    config: dict[str, Any] = dict.fromkeys(auto, "auto")
    # ZeRO-3 keeps small parameters whole, and here all are small.
    pieces = {"stage": stage, "stage3_param_persistence_threshold": 0}
    return {"deepspeed": config | {"zero_optimization": pieces, "zero_allow_untested_optimizer": True}}


def train(trainer: Any, name: str) -> dict[str, Any]:
    assert trainer.args.world_size == 2 and trainer.is_deepspeed_enabled
    trainer.train()
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    assert all(hasattr(p, "ds_id") and p.numel() == 0 for p in parameters) == name.endswith("3")
    with gathered(parameters):
        tensors = {key: p.detach().clone().contiguous() for key, p in trained(trainer).items()}
    recorded = trainer.recorded_importance
    save_file(tensors | dict(recorded or {}), FOLDER / f"{name}-{dist.get_rank()}.safetensors")
    return {"log": logged(trainer), "base samples": recorded.base_samples if recorded is not None else {}}


def refusal(build: Any) -> str:
    try:
        build()
    except ALoRAError as error:
        return str(error)
    return "nothing was refused"


if __name__ == "__main__":
    torch.set_num_threads(1)
    facts: dict[str, Any] = {}
    for stage in (1, 2, 3):
        for case, build in CASES.items():
            name = f"{case}, zero-{stage}"
            facts[name] = train(build(FOLDER / name, batch=2, **zero(stage)), name)
    facts["decoupled"] = refusal(lambda: protected_trainer("decoupled", FOLDER / "d", batch=2, **zero(2)))
    facts["budget"] = refusal(lambda: protected_trainer("budget", FOLDER / "b", batch=2, **zero(1)))
    facts["full"] = refusal(lambda: recorded_trainer("full", FOLDER / "f", batch=2, **zero(3)))
    (FOLDER / f"facts-{dist.get_rank()}.json").write_text(json.dumps(facts))
    dist.destroy_process_group()
