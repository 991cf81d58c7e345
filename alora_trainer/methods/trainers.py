"""Which trainer a method trains with on the domain."""

from __future__ import annotations

from typing import Any

from alora_trainer.config import ALoRAConfig
from alora_trainer.importance import ImportanceMap
from alora_trainer.methods.method import Method
from alora_trainer.methods.options import MethodOptions


def make_trainer(
    method: Method,
    options: MethodOptions,
    *,
    importance: ImportanceMap | None = None,
    alora: ALoRAConfig | None = None,
    probe_dataset: Any = None,
    general: Any = None,
    **kwargs: Any,
) -> Any:
    """The method's trainer.

    Args:
        method: what to train.
        options: what the recipe sets for it.
        importance, alora, probe_dataset: what holds it, for a method with a penalty; see `ALoRAMixin`.
        general: rows of general text, for a method that needs them.
        kwargs: model, args, train_dataset and the like, for `transformers.Trainer`.
    """
    from alora_trainer.trainer import ALoRATrainer

    common = kwargs | {"importance": importance, "alora": alora, "probe_dataset": probe_dataset}
    if method.technique is None:
        return ALoRATrainer(**common)
    if method.technique == "lora_pro":
        from alora_trainer.methods.lora_pro import LoRAProTrainer

        return LoRAProTrainer(**common, options=options.own)
    return _general_text_trainer(method.technique)(**common, options=options.own, general=general)


def _general_text_trainer(technique: str) -> type[Any]:
    if technique == "replay":
        from alora_trainer.methods.replay import ReplayTrainer

        return ReplayTrainer
    if technique == "kl_anchor":
        from alora_trainer.methods.kl_anchor import KLAnchorTrainer

        return KLAnchorTrainer
    from alora_trainer.methods.i_lora import ILoRATrainer

    return ILoRATrainer
