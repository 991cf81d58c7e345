"""What two gloo processes do for `test_processes`: trainings whose outcomes go into a folder, for one process to compare.

Launched in two processes by `launching.launch_two`: ``tests/processes_worker.py FOLDER``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from alora_trainer import ALoRAConfig, ALoRAError, ALoRATrainer
from alora_trainer.artefact.files import is_omega_file
from alora_trainer.trainer.recording import Recording
from tests.process_cases import (
    PROTECTED,
    READ,
    RECORDED,
    build,
    logged,
    map_of,
    protected_trainer,
    recorded_trainer,
    reference_map,
    trained,
)
from tests.tiny_training import quiet_arguments, tiny_llama, token_rows, with_lora

FOLDER = Path(sys.argv[1])
FACTS: dict[str, Any] = {}


def save(name: str, tensors: dict[str, torch.Tensor]) -> None:
    """Write tensors, each process its own file."""
    save_file({key: t.detach().cpu().contiguous() for key, t in tensors.items()}, FOLDER / f"{name}-{RANK}.safetensors")


def record() -> None:
    for name in RECORDED:
        trainer = recorded_trainer(name, FOLDER / name, batch=2)
        assert trainer.args.world_size == 2
        trainer.train()
        save(f"record {name}", dict(trainer.importance) | trained(trainer))
        FACTS[f"record {name}"] = {"tokens": trainer.importance.info.tokens, "steps": trainer.importance.info.steps}


def share() -> None:
    """How the running integral and Omega are shared while they are in use."""

    class Looks(ALoRATrainer):
        def _after_optimizer_step(self) -> None:
            super()._after_optimizer_step()
            (part,) = self.parts
            if isinstance(part, Recording):
                FACTS["integrated here"] = sorted(part.recorder._integral.tensors())
            else:
                FACTS["held here"] = sorted(part.penalty.held)
                FACTS["bytes here"] = sum(omega.nbytes for omega in part.penalty._omegas.in_order())

    args = quiet_arguments(str(FOLDER / "share"), max_steps=1)
    Looks(with_lora(tiny_llama()), args, train_dataset=token_rows(), alora=ALoRAConfig(record="path")).train()
    model = build()
    importance = reference_map(model)
    Looks(model, args, train_dataset=token_rows(), importance=importance, alora=ALoRAConfig()).train()
    FACTS["bytes of all"] = importance.nbytes


def read() -> None:
    """What is read of a map that is given by its place, and that a damaged one is refused by all."""
    from alora_trainer.artefact import reading

    if RANK == 0:
        for name in READ:
            map_of(name, build()).save_pretrained(FOLDER / f"map of {name}")
    dist.barrier()
    looked_at: list[str] = []
    plain = reading.read_tensor

    def watched(path: Path, header: Any, entry: Any) -> torch.Tensor:
        looked_at.append(f"{path.name} {entry.key}")
        return plain(path, header, entry)

    reading.read_tensor = watched
    try:
        for name in READ:
            del looked_at[:]
            trainer = protected_trainer(name, FOLDER / f"read {name}", batch=2, place=FOLDER)
            (part,) = trainer.parts
            FACTS[f"read {name}"] = {"tensors": sorted(looked_at), "bytes": part._importance.nbytes}
            trainer.train()
            save(f"read {name}", trained(trainer))
            FACTS[f"read {name}"]["lines"] = logged(trainer)
            FACTS[f"read {name}"]["held"] = sorted(part.penalty.held)
    finally:
        reading.read_tensor = plain
    FACTS["given is whole"] = trainer.given_importance == map_of(name, build())
    other = next(weight for weight in part._importance if weight not in part.penalty.held)
    try:
        part._importance[other]
    except ALoRAError as error:
        FACTS["not here"] = str(error)
    if RANK == 0:
        (file,) = (path for path in (FOLDER / "map of coupled").iterdir() if is_omega_file(path.name))
        content = bytearray(file.read_bytes())
        content[-3] ^= 0x40
        file.write_bytes(content)
    dist.barrier()
    try:
        protected_trainer("coupled", FOLDER / "damaged", batch=2, place=FOLDER)
    except ALoRAError as error:
        FACTS["damaged"] = str(error)


def protect() -> None:
    for name in PROTECTED:
        trainer = protected_trainer(name, FOLDER / name, batch=2)
        assert trainer.args.world_size == 2
        trainer.train()
        save(f"protect {name}", trained(trainer))
        FACTS[f"protect {name}"] = logged(trainer)


def resume() -> None:
    """Stop in the middle of a recording by two processes, and go on."""
    whole = recorded_trainer("path", FOLDER / "whole", batch=2, max_steps=4)
    whole.train()
    settings = {"batch": 2, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    recorded_trainer("path", FOLDER / "cut", **settings).train()
    again = recorded_trainer("path", FOLDER / "cut", **settings)
    again.train(resume_from_checkpoint=True)
    equal = all(torch.equal(again.importance[name], omega) for name, omega in whole.importance.items())
    FACTS["resumed equals whole"] = equal and again.importance.info == whole.importance.info


def diverge() -> None:
    """NaN in one process's batch stops both, with the same words."""

    class Broken(ALoRATrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            return loss * float("nan") if self.state.global_step == 1 and RANK == 1 else loss

    args = quiet_arguments(str(FOLDER / "broken"), save_strategy="steps", save_steps=1)
    try:
        Broken(with_lora(tiny_llama()), args, train_dataset=token_rows(), alora=ALoRAConfig(record="path")).train()
    except ALoRAError as error:
        FACTS["diverged"] = str(error)


def fully_shard() -> None:
    """FSDP2's sharded parameters: the penalty's gradients land in each process's pieces, and recording reads them whole."""
    from torch.distributed.fsdp import fully_shard as shard

    from alora_trainer.importance.recording.recorder import Recorder
    from alora_trainer.penalty import QuadraticPenalty
    from alora_trainer.penalty.loss_term import penalty_loss
    from alora_trainer.weights.adapted import adapted_weights
    from alora_trainer.weights.trained_weight import learning_rates
    from tests.tiny_training import move_factors

    model = build()
    importance = reference_map(model)
    move_factors(model, 0.05)
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    for layer in model.base_model.model.model.layers:
        shard(layer, mesh=mesh)
    shard(model, mesh=mesh)
    weights = adapted_weights(model)
    assert all(weight.is_sharded for weight in weights)
    penalty = QuadraticPenalty(weights, importance, lam=0.3, normalize=False)
    recorder = Recorder(weights, "path", 1e-3)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    rows = token_rows().select(range(2 * RANK, 2 * RANK + 2))
    ids, labels = torch.tensor(rows["input_ids"]), torch.tensor(rows["labels"])
    loss = model(input_ids=ids, labels=labels, num_items_in_batch=20).loss * 2
    step = penalty.evaluate()
    (loss + penalty_loss(weights, step, loss.dtype, loss.device)).backward()
    whole = {weight.name: weight.gradients() for weight in weights}
    data = {n: tuple(g - own for g, own in zip(whole[n], step.gradients[n], strict=True)) for n in whole}
    recorder.before_step(data, learning_rates(optimizer))
    optimizer.step()
    recorder.after_step()
    drift = penalty.drift()
    save(
        "fully_shard",
        {f"{n}.{i}": g for n, pair in whole.items() for i, g in enumerate(pair)}
        | {f"{n}.omega": omega for n, omega in recorder.finish().items()},
    )
    samples = {weight.name: weight.base_sample() for weight in weights}
    FACTS["fully_shard"] = {"penalty": float(step.value), "drift": drift, "base samples": samples}


if __name__ == "__main__":
    dist.init_process_group("gloo")
    RANK = dist.get_rank()
    assert dist.get_world_size() == 2
    torch.set_num_threads(1)
    for part in (record, share, read, protect, resume, diverge, fully_shard):
        part()
        dist.barrier()
    (FOLDER / f"facts-{RANK}.json").write_text(json.dumps(FACTS))
    dist.destroy_process_group()
