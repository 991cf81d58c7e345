"""Two GPUs under FSDP2 through the Trainer, for `test_fsdp_gpu`: ``fsdp_worker.py FOLDER``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors.torch import save_file

from alora_trainer.trainer import engines
from alora_trainer.weights.trained_weight import whole
from tests.process_cases import logged, protected_trainer, recorded_trainer

FOLDER = Path(sys.argv[1])
FSDP: dict[str, Any] = {
    "use_cpu": False,
    "fsdp": "full_shard",
    "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]},
}

if __name__ == "__main__":
    engines.FSDP2_HAS_RUN = True
    recorder = recorded_trainer("path", FOLDER / "record", batch=2, **FSDP)
    assert recorder.args.world_size == 2 and recorder.is_fsdp_enabled
    recorder.train()
    tuner = protected_trainer("coupled", FOLDER / "protect", batch=2, **FSDP)
    tuner.train()
    moved = {n: whole(p.detach()).cpu().contiguous() for n, p in tuner.model.named_parameters() if p.requires_grad}
    if dist.get_rank() == 0:
        save_file(
            {name: omega.contiguous() for name, omega in recorder.importance.items()}, FOLDER / "omega.safetensors"
        )
        save_file(moved, FOLDER / "moved.safetensors")
        (FOLDER / "log.json").write_text(json.dumps(logged(tuner)))
    dist.destroy_process_group()
