"""FSDP2 through the Trainer: the trainings that two processes and one both do, and how a CPU is made to run them.

The two differ in sharding alone: all other settings are the same, and one process has the doubled batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from alora_trainer import ALoRAConfig, ALoRADPOTrainer, ALoRASFTTrainer, ALoRATrainer, ImportanceMap
from alora_trainer.importance.origin import ImportanceInfo
from alora_trainer.weights.adapted import adapted_weights
from alora_trainer.weights.full_weight import full_weights
from alora_trainer.weights.model_weights import trained_weights
from alora_trainer.weights.parameterization import Parameterization
from alora_trainer.weights.theta import BaseTheta, FullTheta
from alora_trainer.weights.trained_weight import whole
from tests.basis_map import basis_map
from tests.process_cases import curvature_map, reference_map
from tests.tiny_tokenizer import make_tokenizer
from tests.tiny_training import (
    EXPERT_STACKS,
    move_factors,
    quiet_arguments,
    tiny_llama,
    tiny_mixture,
    token_rows,
    with_lora,
)

FSDP: dict[str, Any] = {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}
OF_MIXTURES: dict[str, Any] = {"transformer_layer_cls_to_wrap": ["Qwen3MoeDecoderLayer"]}


def shard_on_cpus() -> None:
    """Let accelerate turn FSDP on where the processes have no accelerator: its list of those that may lacks MULTI_CPU, and
    it makes DDP of it without a word."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    plain = AcceleratorState.__init__

    def init(self: Any, *args: Any, fsdp_plugin: Any = None, **settings: Any) -> None:
        plain(self, *args, fsdp_plugin=fsdp_plugin, **settings)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = init


@dataclass(frozen=True)
class Case:
    """One training.

    Attributes:
        ours: of `ALoRAConfig`.
        model: builds it.
        importance: builds the map to protect with, of the model before its factors are moved; None for none.
        settings: of the training's arguments, in two processes and in one.
        fsdp: of `fsdp_config`, in two processes alone.
        trainer: "plain", "sft" or "dpo".
        probe: pass a probe_dataset, and begin at theta*.
        fresh: begin with an adapter that has learned nothing.
        tolerance: of relative errors between two processes and one.
    """

    ours: dict[str, Any] = field(default_factory=dict)
    model: Callable[[], Any] = lambda: with_lora(tiny_llama(), moved=True)
    importance: Callable[[Any], ImportanceMap] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    fsdp: dict[str, Any] = field(default_factory=dict)
    trainer: str = "plain"
    probe: bool = False
    fresh: bool = False
    tolerance: float = 1e-5


def wide(**lora: Any) -> Any:
    """Adapters in a decoder layer's attention, in the embeddings and in the head, which FSDP2 keeps in groups of their own."""
    return with_lora(tiny_llama(), moved=True, **({"target_modules": ["q_proj", "embed_tokens", "lm_head"]} | lora))


def tied() -> Any:
    return with_lora(tiny_llama(tie_word_embeddings=True), moved=True, target_modules=["q_proj", "embed_tokens"])


def with_saved_modules() -> Any:
    return with_lora(tiny_llama(), moved=True, modules_to_save=["lm_head"])


def of_tokenizer() -> Any:
    return with_lora(tiny_llama(vocab_size=len(make_tokenizer()), max_position_embeddings=128), moved=True)


def stored_as(storage: str) -> Callable[[Any], ImportanceMap]:
    return lambda model: reference_map(model).convert(storage)


def first_directions(kind: str, fsdp: dict[str, Any] | None = None, **ours: Any) -> Case:
    """Of 21 items, in batches of two, one process has a batch more than the other."""
    return Case(
        {"init_adapter": kind, "init_items": 21, "lam": 0.5, **ours},
        model=lambda: with_lora(tiny_llama(), target_modules=["q_proj", "v_proj", "down_proj"]),
        importance=lambda model: basis_map(),
        fsdp=fsdp or {},
        fresh=True,
        tolerance=1e-4,
    )


def mixture() -> Any:
    """Experts in one parameter beside a linear layer."""
    return with_lora(tiny_mixture(num_hidden_layers=2), target_modules=["q_proj"], target_parameters=EXPERT_STACKS)


def base_curvature(model: Any) -> ImportanceMap:
    """Of the base model: what a fresh adapter may be started by."""
    recorded = curvature_map(model)
    stored = {name: recorded.stored(name) for name in recorded}
    return ImportanceMap(stored, BaseTheta({w.name: w.shape for w in adapted_weights(model)}), info=recorded.info)


def experts_directions(kind: str, **ours: Any) -> Case:
    return Case(
        {"init_adapter": kind, "init_items": 21, "lam": 0.5, "layer_weights": "none", **ours},
        model=mixture,
        importance=base_curvature,
        settings=SGD,  # Adam makes steps of rounding where an expert is hardly used
        fsdp=OF_MIXTURES,
        fresh=True,
        tolerance=1e-4,
    )


def full_map(model: Any) -> ImportanceMap:
    generator = torch.Generator().manual_seed(5)
    weights = full_weights(model)
    return ImportanceMap(
        {weight.name: torch.rand(weight.shape, generator=generator) for weight in weights},
        FullTheta({weight.name: weight.reference() for weight in weights}),
        info=ImportanceInfo(),
    )


DECOUPLED = {"lam": 0.5, "application": "decoupled"}
EVALUATED = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 2}

ACCUMULATED = {"gradient_accumulation_steps": 2, "max_steps": 2}
AT_ONCE = {"record": "path", "lam": 0.5}
SGD = {"optim": "sgd"}

# As few trainings as show every line of docs/engines.md: several of them in one, where they are apart from each other.
CASES: dict[str, Case] = {
    # recording
    "projected": Case({"record": "projected"}, settings=ACCUMULATED | {"max_grad_norm": 0.01}),
    "path": Case({"record": "path"}, fsdp={"cpu_ram_efficient_loading": True}),
    "paper": Case({"record": "paper", "fold_every": 2}),
    "exact, gradient checkpointing": Case({"record": "exact"}, settings={"gradient_checkpointing": True}),
    # recording and protecting at once
    "embeddings": Case(AT_ONCE, model=wide, importance=reference_map, settings=EVALUATED),
    "sft": Case(AT_ONCE, model=of_tokenizer, importance=reference_map, trainer="sft"),
    "full, activation checkpointing": Case(
        AT_ONCE | {"full_parameters": True},
        model=tiny_llama,
        importance=full_map,
        settings=SGD,
        fsdp={"activation_checkpointing": True},
    ),
    # protecting
    "log8, tied": Case({"lam": 0.5}, model=tied, importance=stored_as("log8"), settings=ACCUMULATED),
    "factored, modules to save": Case(
        {"lam": 0.5},
        model=with_saved_modules,
        importance=stored_as("factored"),
        fsdp={"reshard_after_forward": False},
    ),
    "curvature": Case({"lam": 0.5, "layer_weights": "none"}, importance=curvature_map),
    "curvature, decoupled": Case(DECOUPLED | {"layer_weights": "none"}, importance=curvature_map),
    "dpo": Case({"lam": 0.5}, model=of_tokenizer, importance=reference_map, trainer="dpo"),
    "full, decoupled": Case(DECOUPLED | {"full_parameters": True}, model=tiny_llama, importance=full_map, settings=SGD),
    "auto": Case({"lam": "auto"}, importance=reference_map),
    "auto, decoupled": Case(
        {"lam": "auto", "application": "decoupled"}, model=wide, importance=reference_map, settings=EVALUATED
    ),
    # where a fresh adapter starts
    "natural, A frozen": first_directions("natural_gradient", {"cpu_ram_efficient_loading": True}, freeze_a=True),
    "natural by a sketch": first_directions("natural_gradient", {"reshard_after_forward": False}, init_memory="sketch"),
    "contrastive": first_directions("contrastive"),
    # experts in one parameter
    "experts": Case(AT_ONCE, model=mixture, importance=reference_map, fsdp=OF_MIXTURES),
    "experts, natural": experts_directions("natural_gradient"),
    "experts, natural by a sketch": experts_directions("natural_gradient", init_memory="sketch"),
    "experts, contrastive, decoupled": experts_directions("contrastive", application="decoupled"),
    # Mixed precision: FSDP2 casts whole layers to bfloat16, autocast in one process single operations.
    "bf16": Case(AT_ONCE, importance=reference_map, settings={"bf16": True} | SGD, tolerance=5e-3),
    "budget": Case({"budget": 0.02, "probe_steps": 1}, model=wide, importance=reference_map, probe=True),
}


def sharded(case: Case, **fsdp: Any) -> dict[str, Any]:
    """What the arguments of two processes have beside those of one."""
    return {"fsdp": True, "fsdp_config": FSDP | case.fsdp | fsdp, "per_device_train_batch_size": 2}


def trainer_of(name: str, folder: Path, *, ours: dict[str, Any] | None = None, **settings: Any) -> Any:
    """The trainer of a case, by default in one process with the whole batch; `ours` instead of the case's own."""
    case = CASES[name]
    model = case.model()
    importance = case.importance(model) if case.importance is not None else None
    probe = probed(model) if case.probe else None
    if importance is not None and not (case.probe or case.fresh):
        move(model)
    config = ALoRAConfig(**(case.ours if ours is None else ours))
    common: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "train_sampling_strategy": "sequential",
        "max_steps": 3,
        "learning_rate": 0.02,
    }
    settings = common | case.settings | settings
    parts: dict[str, Any] = {"alora": config, "importance": importance}
    if case.trainer != "plain":
        return _of_trl(case.trainer, model, folder, settings, parts)
    if probe is not None:
        parts["probe_dataset"] = probe
    args = quiet_arguments(str(folder), **settings)
    unmasked = token_rows(items=8, seed=4).remove_columns("labels")  # the Trainer's mean over processes is over tokens
    data = {"train_dataset": token_rows(items=32), "eval_dataset": unmasked.add_column("labels", unmasked["input_ids"])}
    return ALoRATrainer(model, args, **data, **parts)


def probed(model: Any) -> Any:
    """General text of an odd number of rows that the model is good at, and worse the further it moves."""
    import copy

    still = copy.deepcopy(model).eval()
    rows = token_rows(items=5, seed=11)
    ids = torch.tensor(rows["input_ids"])
    with torch.no_grad():
        for place in range(1, ids.shape[1]):
            ids[:, place] = still(input_ids=ids[:, :place]).logits[:, -1].argmax(-1)
    return type(rows).from_dict({"input_ids": ids.tolist()})


def move(model: Any) -> None:
    """Away from where the map was made."""
    if hasattr(model, "peft_config"):
        move_factors(model, 0.05)
        return
    generator = torch.Generator().manual_seed(9)
    for parameter in model.parameters():
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=generator)


def _of_trl(kind: str, model: Any, folder: Path, settings: dict[str, Any], ours: dict[str, Any]) -> Any:
    from datasets import Dataset
    from trl import DPOConfig, SFTConfig

    words = ["the", "sum", "of", "two", "numbers", "is", "here"]
    plain = {"bf16": False, "gradient_checkpointing": False} | vars_of_quiet(settings)
    # All of one length: the Trainer counts tokens over the processes, DPO its pairs.
    said = [" ".join(words[(i + j) % len(words)] for j in range(5)) for i in range(32)]
    if kind == "sft":
        args = SFTConfig(str(folder), max_length=32, **plain)
        return ALoRASFTTrainer(
            model, args, train_dataset=Dataset.from_dict({"text": said}), processing_class=make_tokenizer(), **ours
        )
    pairs = {"prompt": said, "chosen": [f" {text}" for text in said[3:] + said[:3]], "rejected": [" here"] * len(said)}
    args = DPOConfig(str(folder), **plain)
    return ALoRADPOTrainer(
        model, args=args, train_dataset=Dataset.from_dict(pairs), processing_class=make_tokenizer(), **ours
    )


def vars_of_quiet(settings: dict[str, Any]) -> dict[str, Any]:
    """`quiet_arguments`' own settings, for another class of arguments."""
    quiet: dict[str, Any] = {"lr_scheduler_type": "constant", "optim": "adamw_torch", "use_cpu": True}
    quiet |= {"report_to": "none", "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True}
    return quiet | settings


def outcome(trainer: Any) -> dict[str, torch.Tensor]:
    """What came of a training: the trained parameters, whole, and Omega. All processes must call it together."""
    kind = Parameterization.FULL if trainer.alora.full_parameters else Parameterization.ADAPTER
    weights = trained_weights(trainer.model, kind)
    moved = {f"{w.name}.{i}": m.clone() for w in weights for i, m in enumerate(w.matrices)}
    loose = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad and "modules_to_save" in name}
    moved |= {f"loose {name}": whole(p.detach()).clone() for name, p in loose.items()}
    recorded = trainer.recorded_importance
    return moved | {f"{name}.omega": omega for name, omega in (recorded.items() if recorded is not None else ())}
