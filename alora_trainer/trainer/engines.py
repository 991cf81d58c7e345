"""What the engines under a trainer can do, checked before the first step: what would only go wrong silently is refused.

docs/engines.md has the same as a table, with the test that shows each line.
"""

from __future__ import annotations

from typing import Any

from alora_trainer.errors import ALoRAError
from alora_trainer.trainer.config import ALoRAConfig

# Optimizers that step inside the backward pass, parameter by parameter: the gradients of a step never exist together.
_LAYERWISE = frozenset(
    {
        "lomo",
        "adalomo",
        "galore_adamw_layerwise",
        "galore_adamw_8bit_layerwise",
        "galore_adafactor_layerwise",
        "apollo_adamw_layerwise",
    }
)


def check_engine(trainer: Any, config: ALoRAConfig) -> None:
    """Refuse an engine or a setting under which recording or the penalty would be wrong.

    Args:
        trainer: a `transformers.Trainer`, initialised.
        config: our settings.

    Raises:
        ALoRAError: naming the setting, and the nearest one that works.
    """
    args = trainer.args
    if args.n_gpu > 1:
        raise ALoRAError(
            "several GPUs in one process (DataParallel) are not supported: launch with torchrun, one process a GPU"
        )
    _check_parallelism(trainer)
    if trainer.is_deepspeed_enabled:
        _check_deepspeed(trainer, config)
    if trainer.is_fsdp_enabled:
        _check_fsdp(trainer, config)
    optim = str(getattr(args.optim, "value", args.optim))
    if optim in _LAYERWISE:
        raise ALoRAError(
            f"optim={optim!r} steps inside the backward pass, where the gradients of a step never exist together: "
            "use 'adamw_torch', or 'adamw_bnb_8bit' to save memory"
        )
    if "schedule_free" in optim and (config.application == "decoupled" or config.budget is not None):
        raise ALoRAError(
            f"optim={optim!r} keeps averages of the weights beside them, which a pull on the weights alone would not reach: "
            "use application='coupled' without a budget, or another optimizer"
        )
    compiled = args.torch_compile or any("_orig_mod" in name for name, _ in trainer.model.named_modules())
    if config.record == "exact" and compiled:
        raise ALoRAError(
            "record='exact' watches the layers' inputs by hooks, which torch.compile does not run as they stand: "
            "use record='projected', or torch_compile=False"
        )
    if config.record is not None and args.load_best_model_at_end:
        raise ALoRAError(
            "load_best_model_at_end would pair the importance of the whole training with earlier weights: "
            "set it to False while recording"
        )
    if config.budget is not None and args.load_best_model_at_end:
        raise ALoRAError(
            "load_best_model_at_end would bring back weights that may be above the budget: set it to False with a budget"
        )


def _check_parallelism(trainer: Any) -> None:
    if getattr(trainer, "is_distributed_loading_by_transformers", False):
        raise ALoRAError(
            "a model that from_pretrained has spread over processes (distributed_config, tp_plan) is not supported: load it "
            "whole, and launch with torchrun for data parallelism"
        )
    parallelism = getattr(trainer.accelerator, "parallelism_config", None)
    kinds = ("tp", "cp", "sp")
    active = [kind for kind in kinds if parallelism is not None and getattr(parallelism, f"{kind}_enabled", False)]
    if active:
        raise ALoRAError(
            f"tensor, context and sequence parallelism ({', '.join(active)}) are not supported: use data parallelism (torchrun)"
        )
    if str(trainer.args.device.type) == "xla":
        raise ALoRAError("TPUs are not supported: use GPUs or a CPU")


def _check_deepspeed(trainer: Any, config: ALoRAConfig) -> None:
    stage = trainer.accelerator.state.deepspeed_plugin.zero_stage
    if stage >= 3 and config.full_parameters:
        raise ALoRAError(
            "full_parameters=True under DeepSpeed ZeRO-3 would bring the whole model together on every process: use FSDP2, or "
            "ZeRO-2"
        )
    if config.record is not None and (trainer.args.bf16 or trainer.args.fp16):
        raise ALoRAError(
            "DeepSpeed trains rounded copies of the weights in bf16 and fp16, whose movement is not what its optimizer made: "
            "record in float32 (bf16=False), or with FSDP2 or plain data parallelism (torchrun)"
        )
    if config.record == "exact":
        raise ALoRAError("record='exact' is not supported under DeepSpeed: use record='path'")
    if config.record is not None and config.full_parameters:
        raise ALoRAError("full tuning is not recorded under DeepSpeed: use FSDP2, or plain data parallelism (torchrun)")
    if config.application == "decoupled":
        raise ALoRAError(
            "application='decoupled' moves the weights beside the optimizer, and DeepSpeed overwrites them from its own copy: "
            "use application='coupled', or plain data parallelism (torchrun)"
        )
    if config.budget is not None:
        raise ALoRAError(
            "budget pulls the weights back at the end of the training, and DeepSpeed has its own copy of them: leave budget "
            "out and give lam a number, or use plain data parallelism (torchrun)"
        )
    if config.lam == "auto":
        raise ALoRAError("lam='auto' is not supported under DeepSpeed: give lam a number, or use FSDP2")


def _check_fsdp(trainer: Any, config: ALoRAConfig) -> None:
    plugin = trainer.accelerator.state.fsdp_plugin
    if getattr(plugin, "fsdp_version", 1) != 2:
        raise ALoRAError(
            "FSDP 1 flattens the parameters, so that no weight can be told from another: set fsdp_config={'version': 2}, or "
            "use plain data parallelism (torchrun)"
        )
    if getattr(getattr(plugin, "cpu_offload", None), "pin_memory", None) is not None:
        raise ALoRAError(
            "FSDP2 with cpu_offload keeps the parameters in host memory, where our sums over processes have not been tried: "
            "set cpu_offload to False, and storage_device='cpu' to keep importance alone in host memory"
        )
    if getattr(plugin, "activation_checkpointing", False) and not config.full_parameters:
        raise ALoRAError(
            "FSDP2's activation_checkpointing wraps the layers, by whose names PEFT looks for an adapter's weights: it would "
            "find none, and save an empty adapter; leave it out of fsdp_config, and set gradient_checkpointing=True instead"
        )
