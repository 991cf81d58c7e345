"""Two processes under FSDP2 through the Trainer, for `test_fsdp` (``cpu``) and `test_fsdp_gpu` (``cuda``).

Launched in two processes by `launching.launch_two`: ``tests/fsdp_worker.py FOLDER DEVICE [CASE ...]``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from transformers import Trainer

from alora_trainer.importance.recording.recorder import Recorder
from alora_trainer.weights.trained_weight import whole
from tests.fsdp_cases import CASES, move, outcome, shard_on_cpus, sharded, trainer_of
from tests.process_cases import logged

FOLDER, DEVICE = Path(sys.argv[1]), sys.argv[2]
FACTS: dict[str, Any] = {}


def build(name: str, folder: str, *, fsdp: dict[str, Any] | None = None, **settings: Any) -> Any:
    trainer = trainer_of(
        name, FOLDER / folder, **(sharded(CASES[name], **(fsdp or {})) | {"use_cpu": DEVICE == "cpu"} | settings)
    )
    assert trainer.args.world_size == 2 and trainer.is_fsdp_enabled
    return trainer


def train(name: str) -> None:
    trainer = build(name, name)
    trainer.train()
    assert any(hasattr(p, "device_mesh") for p in trainer.model.parameters()), "nothing was sharded"
    found = {key: tensor.cpu().contiguous() for key, tensor in outcome(trainer).items()}
    save_file(found, FOLDER / f"{name}-{dist.get_rank()}.safetensors")
    FACTS[name] = logged(trainer)
    if name == "auto":
        trainer.save_model(str(FOLDER / "adapter"))
    if name == "path" and dist.get_rank() == 0:
        trainer.recorded_importance.save_pretrained(FOLDER / "map")


def resume() -> None:
    """Stop in the middle, with either kind of state dict, and go on."""
    settings: dict[str, Any] = {"eval_strategy": "no", "max_steps": 2}
    whole = build("embeddings", "whole", **settings)
    whole.train()
    expected = outcome(whole)
    settings |= {"save_strategy": "steps", "save_steps": 1}
    for kind in ("FULL_STATE_DICT", "SHARDED_STATE_DICT"):
        build("embeddings", kind, fsdp={"state_dict_type": kind}, **settings).train()
        again = build("embeddings", kind, fsdp={"state_dict_type": kind}, **settings)
        again.train(resume_from_checkpoint=True)
        assert [line["step"] for line in again.state.log_history if "loss" in line] == [1, 2]
        found = outcome(again)
        FACTS[kind] = {key: torch.equal(found[key], tensor) for key, tensor in expected.items()}


def idle() -> None:
    """With lambda 0, against `transformers.Trainer` itself."""
    held = build("auto", "idle", ours={"lam": 0.0})
    held.train()
    model = CASES["auto"].model()
    move(model)
    plain = Trainer(model, held.args, train_dataset=held.train_dataset)
    plain.train()
    mine, theirs = (dict(trainer.model.named_parameters()) for trainer in (held, plain))
    FACTS["idle"] = {name: torch.equal(whole(mine[name].detach()), whole(p.detach())) for name, p in theirs.items()}


def watch_what_recorders_keep() -> None:
    """Of which weights a process keeps gradients while the optimizer steps."""
    plain = Recorder.before_step

    def before_step(self: Recorder, *args: Any, **settings: Any) -> None:
        plain(self, *args, **settings)
        FACTS["kept"] = sorted(self._before)

    Recorder.before_step = before_step  # type: ignore[method-assign]


if __name__ == "__main__":
    torch.set_num_threads(1)
    if DEVICE == "cpu":
        shard_on_cpus()
    watch_what_recorders_keep()
    for case in sys.argv[3:] or CASES:
        train(case)
        if case.startswith("full"):
            FACTS.setdefault("kept in full tuning", FACTS["kept"])
    if not sys.argv[3:]:
        resume()
        idle()
    (FOLDER / f"facts-{dist.get_rank()}.json").write_text(json.dumps(FACTS))
    dist.destroy_process_group()
