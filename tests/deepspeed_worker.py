"""Two processes under DeepSpeed's ZeRO on the CPU, for `test_deepspeed`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from alora_trainer import ALoRAError
from tests.process_cases import logged, protected_trainer, recorded_trainer, trained

FOLDER = Path(sys.argv[1])


def zero(stage: int) -> dict[str, Any]:
    auto = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size", "gradient_clipping")
    config: dict[str, Any] = dict.fromkeys(auto, "auto")
    return {"deepspeed": config | {"zero_optimization": {"stage": stage}, "zero_allow_untested_optimizer": True}}


def protect(stage: int) -> dict[str, Any]:
    trainer = protected_trainer("coupled", FOLDER / f"zero-{stage}", batch=2, **zero(stage))
    assert trainer.args.world_size == 2 and trainer.is_deepspeed_enabled
    trainer.train()
    tensors = {name: p.detach().contiguous() for name, p in trained(trainer).items()}
    save_file(tensors, FOLDER / f"zero-{stage}-{dist.get_rank()}.safetensors")
    return {"log": logged(trainer)}


def refusal(build: Any) -> str:
    try:
        build()
    except ALoRAError as error:
        return str(error)
    return "nothing was refused"


if __name__ == "__main__":
    torch.set_num_threads(1)
    facts: dict[str, Any] = {f"zero-{stage}": protect(stage) for stage in (1, 2)}
    facts["recording"] = refusal(lambda: recorded_trainer("path", FOLDER / "r", batch=2, **zero(2)))
    facts["decoupled"] = refusal(lambda: protected_trainer("decoupled", FOLDER / "d", batch=2, **zero(2)))
    facts["budget"] = refusal(lambda: protected_trainer("budget", FOLDER / "b", batch=2, **zero(1)))
    facts["zero-3"] = refusal(lambda: protected_trainer("coupled", FOLDER / "3", batch=2, **zero(3)))
    (FOLDER / f"facts-{dist.get_rank()}.json").write_text(json.dumps(facts))
    dist.destroy_process_group()
