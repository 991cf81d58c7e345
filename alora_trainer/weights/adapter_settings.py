"""What a LoRA adapter does beside moving weights by ``scaling * B A``: said once, for every field of `peft.LoraConfig`.

Whoever relies on an adapter being factors and nothing else asks here: who joins two adapters, who saves one for the bare base
model, who takes "the adapter switched off" for the base model, who anchors a weight at its base weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from peft import LoraConfig

from alora_trainer.weights.adapter_kinds import adapter_configs


@dataclass(frozen=True)
class Extra:
    """What one setting does beside.

    Attributes:
        words: that, to follow the setting in a message.
        off_is_base: with the adapter switched off, the model is the base model.
        weights_are_base: the frozen weights beside A and B are the base model's own.
        reloads: from its files alone, PEFT puts on the bare base model what was trained.
        made_by_config: ``get_peft_model(base, config)`` alone makes it.
        works_in_parts: a text that is run in two parts, the second with the first one's keys and values, gives what it gives
            as a whole. Scoring several answers to one prompt relies on it.
    """

    words: str
    off_is_base: bool = True
    weights_are_base: bool = True
    reloads: bool = True
    made_by_config: bool = True
    works_in_parts: bool = True


_VARIANT = Extra("moves the weights otherwise than by scaling * B A")
_UNKNOWN = Extra(
    "is not known to this version of alora-trainer",
    off_is_base=False,
    weights_are_base=False,
    reloads=False,
    made_by_config=False,
)
_OTHER_KIND = Extra(
    "is another kind of adapter than LoRA", off_is_base=False, weights_are_base=False, made_by_config=False
)
_NOT_MADE = Extra("needs more than its configuration to be made", reloads=False, made_by_config=False)

# Fields that say which weights have factors, of what size, scale and beginning, and nothing more, whatever their value.
PLAIN_FIELDS = frozenset(
    {
        *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
        *("inference_mode", "runtime_config", "megatron_core", "qalora_group_size"),
        *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout", "fan_in_fan_out"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        # Of initialisations, which `init_lora_weights` names: without it PEFT ignores them.
        *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    }
)

# Fields that do more where they are set.
EXTRA_FIELDS: Mapping[str, Extra] = {
    "bias": Extra("trains biases of the base model itself", off_is_base=False),
    "lora_bias": Extra("trains a bias beside B"),
    "modules_to_save": Extra("trains whole modules"),
    "trainable_token_indices": Extra("trains rows of the embeddings"),
    "layer_replication": Extra("repeats layers of the base model", off_is_base=False),
    "target_parameters": Extra("adapts stacks of experts"),
    "ensure_weight_tying": Extra("shares what it trains between tied layers"),
    "use_dora": _VARIANT,
    "velora_config": _VARIANT,
    "alora_invocation_tokens": Extra("is at work after certain tokens alone", works_in_parts=False),
    "monteclora_config": _VARIANT,
    "use_bdlora": _VARIANT,
    "kasa_config": Extra("cuts the base weights", off_is_base=False, weights_are_base=False),
    "arrow_config": _NOT_MADE,
    "megatron_config": _NOT_MADE,
    "use_qalora": Extra("is for GPTQ layers, which are not supported", reloads=False, made_by_config=False),
}

_INTO_THE_BASE = Extra("takes its beginning out of the base weights", off_is_base=False, weights_are_base=False)

# Values of `init_lora_weights`; None for a beginning of A and B and nothing more. Tested in tests/weights.
INITIALISATIONS: Mapping[object, Extra | None] = {
    True: None,
    False: None,
    None: None,
    "gaussian": None,
    "orthogonal": None,
    "mica": _VARIANT,
    "pissa": _INTO_THE_BASE,
    "olora": _INTO_THE_BASE,
    # A random decomposition: made again, it is another one.
    "pissa_niter": Extra(
        "takes a random beginning out of the base weights", off_is_base=False, weights_are_base=False, reloads=False
    ),
    "eva": Extra("begins with what it finds in data, which must be shown to it before", made_by_config=False),
    "corda": Extra(
        "takes a beginning out of the base weights that it finds in data",
        off_is_base=False,
        weights_are_base=False,
        reloads=False,
        made_by_config=False,
    ),
    "lora_ga": Extra(
        "takes a beginning out of the base weights that it finds in data",
        off_is_base=False,
        weights_are_base=False,
        reloads=False,
        made_by_config=False,
    ),
    "loftq": Extra("quantises the base weights", off_is_base=False, weights_are_base=False, reloads=False),
}


def extras(config: Any) -> Iterator[tuple[str, Extra]]:
    """What an adapter does beside moving weights by its factors.

    Args:
        config: a `peft.LoraConfig`; a configuration of another kind of adapter counts as unknown.

    Yields:
        each setting that does more, as ``name=value``, with what.
    """
    if type(config) is not LoraConfig:
        yield f"peft_type={_text(config.peft_type)}", _OTHER_KIND
        return
    for field in fields(config):
        name, value = field.name, getattr(config, field.name)
        extra = _extra_of(name, value, field.default if field.default is not MISSING else None)
        if extra is not None:
            yield f"{name}={_text(value)}", extra


def _extra_of(name: str, value: Any, default: Any) -> Extra | None:
    if name in PLAIN_FIELDS:
        return None
    if name == "init_lora_weights":
        known = "pissa_niter" if isinstance(value, str) and value.startswith("pissa_niter_") else value
        return INITIALISATIONS.get(known, _UNKNOWN)
    if name in EXTRA_FIELDS:
        return EXTRA_FIELDS[name] if value and value != "none" else None
    return _UNKNOWN if value and value != default else None  # of a newer PEFT


def _text(value: object) -> str:
    value = getattr(value, "value", value)
    text = repr(value) if isinstance(value, (str, bool, int, list, tuple, set)) else type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."


def _first(config: Any, is_so: str | None) -> str | None:
    """The first setting for which the property `is_so` of its `Extra` is False (None: the first at all), in words."""
    for setting, extra in extras(config):
        if is_so is None or not getattr(extra, is_so):
            return f"{setting} {extra.words}"
    return None


def more_than_factors(config: Any) -> str | None:
    """Why an adapter is more than ``scaling * B A`` of single weights, such as "bias='all' trains biases ..."; else None."""
    return _first(config, None)


def base_weights_changed(config: Any) -> str | None:
    """Why the frozen weights beside an adapter's factors are not the base model's own; None if they are."""
    return _first(config, "weights_are_base")


def not_loaded_as_trained(config: Any) -> str | None:
    """Why an adapter's files on the bare base model would not be what was trained; None if they would."""
    return _first(config, "reloads")


def not_made_by_config(config: Any) -> str | None:
    """Why a configuration alone does not make the adapter that it names; None if it does."""
    return _first(config, "made_by_config")


def not_scored(config: Any) -> str | None:
    """Why a model with such an adapter cannot be scored as a plain one is; None if it can."""
    if config.is_prompt_learning:
        return f"peft_type={_text(config.peft_type)} puts tokens of its own before a text"
    return _first(config, "works_in_parts")


def not_base_without(config: Any) -> str | None:
    """Why a model with such an adapter is not the base model with the adapter switched off; None if it is."""
    return _first(config, "off_is_base")


def off_is_not_base(model: Any) -> str | None:
    """Why `model` with its adapters switched off is not the base model; None if it is."""
    return next(filter(None, map(not_base_without, adapter_configs(model))), None)


def first_given(config: Any, names: Iterable[str]) -> str | None:
    """The first of an adapter's settings of these names that is given, with whatever value that does something; else None."""
    return next((name for name in names if getattr(config, name, None) not in (None, [], {}, "none", False)), None)
