"""adapter_config.json: read as the work of a stranger, told from another one by a digest, and written so that it can be read.

PEFT's configuration can name modules to import and patterns to match; only what describes a plain LoRA adapter is let through.
"""

from __future__ import annotations

import hashlib
import json
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from peft import LoraConfig
from peft.utils.other import get_pattern_key

from alora_trainer.artefact.adapter_patterns import is_literal_name, is_plain_pattern
from alora_trainer.artefact.files import shown
from alora_trainer.errors import ALoRAError

# What says nothing about the adapter's weights: bookkeeping, and settings of what happens before or during training.
_BOOKKEEPING = frozenset(
    {"auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version", "runtime_config"}
)
# What PEFT 0.21 takes where a file does not say it, for a later PEFT to take the same.
_DEFAULTS: Mapping[str, Any] = {
    "r": 8,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "bias": "none",
    "init_lora_weights": True,
    "megatron_core": "megatron.core",
    "qalora_group_size": 16,
}
_BY_NAME = ("rank_pattern", "alpha_pattern")
# As JSON: what a setting that this PEFT does not know says nothing by.
_EMPTY = ("null", "false", "{}", "[]")


def plain_settings(config: Any, modules: Sequence[str]) -> dict[str, Any]:
    """A PEFT configuration as plain JSON, without the name of a module to import, and without patterns that reading refuses.

    Args:
        config: a `peft.LoraConfig`.
        modules: the names of the modules that it adapts, which stand for such patterns.
    """
    settings = json.loads(json.dumps(config.to_dict(), default=_as_plain))
    settings["auto_mapping"] = None
    if not list(_refused_patterns(settings)):
        return dict(settings)
    for key, default in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
        found = {name: settings[key].get(get_pattern_key(settings[key], name), settings[default]) for name in modules}
        settings[key] = {name: value for name, value in found.items() if value != settings[default]}
    if settings["target_modules"] is not None:
        settings["target_modules"] = sorted(modules)
    return settings | {"exclude_modules": None, "layers_to_transform": None, "layers_pattern": None}


def _as_plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)


def settings_digest(settings: Mapping[str, Any]) -> str:
    """A digest of what an adapter's configuration says of its weights, whoever wrote the file.

    What is not said is what PEFT takes then. Values are compared with their types: block 0 is not no block.
    """
    said = {key: _order_free(key, value) for key, value in settings.items() if not _says_nothing(key, value)}
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()


def _says_nothing(key: str, value: Any) -> bool:
    if key in _BOOKKEEPING:
        return True
    known = _defaults()
    return _text(value) == _text(known[key]) if key in known else _text(value) in _EMPTY


@cache
def _defaults() -> dict[str, Any]:
    return json.loads(json.dumps(LoraConfig().to_dict(), default=_as_plain)) | _DEFAULTS  # type: ignore[no-any-return]


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _order_free(key: str, value: Any) -> Any:
    if key in ("target_modules", "exclude_modules") and isinstance(value, list):
        return sorted(map(str, value))
    if key in _BY_NAME and isinstance(value, dict):
        # PEFT takes the first name that fits. Their order says something where one fits what another does.
        names = list(value)
        nested = any(one != other and one.endswith(f".{other.lstrip('^')}") for one in names for other in names)
        return list(value.items()) if nested else value
    return value


def _earlier_digest(settings: Mapping[str, Any]) -> str | None:
    """The digest as version 0.1 made it, which took block 0 for nothing said; None for what it could not tell."""
    if _text(settings.get("layers_to_transform")) in ("0", "false"):
        return None
    said = {
        key: sorted(map(str, value))
        if key in ("target_modules", "exclude_modules") and isinstance(value, list)
        else value
        for key, value in settings.items()
        if key not in _BOOKKEEPING and value not in (None, False, {}, [])
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()


def check_digest(settings: Mapping[str, Any], digest: str, what: str) -> None:
    """Raise ALoRAError unless settings are those that a map was written with."""
    if digest not in (settings_digest(settings), _earlier_digest(settings)):
        raise ALoRAError(f"{what} is not the adapter's configuration that the map was written with: fetch it again")


def checked_adapter_config(settings: Mapping[str, Any], what: str) -> Any:
    """A `peft.LoraConfig` from untrusted settings.

    Args:
        what: the file, for messages.

    Raises:
        ALoRAError: they are no plain LoRA adapter's, a value is of another type than its field, or a pattern in them may
            take for ever to match.
    """
    types_ = _types()
    unknown = [key for key, value in settings.items() if key not in types_ and _text(value) not in _EMPTY]
    if unknown:
        raise ALoRAError(
            f"{what} has settings that this PEFT does not know ({shown(', '.join(unknown[:3]))}): update peft"
        )
    if settings.get("peft_type") != "LORA":
        raise ALoRAError(
            f"{what} is of the type {shown(settings.get('peft_type'))}: an importance map has a LORA adapter"
        )
    for key, value in settings.items():
        if key in types_ and value is not None and not _fits(value, types_[key]):
            raise ALoRAError(f"{what} has {key}: {shown(value)}, which cannot be: it is damaged, fetch it again")
    library = (settings.get("auto_mapping") or {}).get("parent_library", "transformers")
    if str(library).split(".")[0] != "transformers":
        raise ALoRAError(
            f"{what} wants the module {shown(library)} imported (auto_mapping), which is refused: remove it"
        )
    if settings.get("megatron_config") is not None:
        raise ALoRAError(f"{what} wants Megatron layers (megatron_config), which are not supported: remove it")
    for key, pattern in _refused_patterns(settings):
        raise ALoRAError(
            f"{what} has the pattern {shown(pattern)} in {key}, which may take for ever to match: write the names of the "
            "modules instead"
        )
    left_out = ("auto_mapping", "runtime_config")
    kept = {
        key: value for key, value in settings.items() if key in types_ and key not in left_out and value is not None
    }
    try:
        return LoraConfig(**(dict(_DEFAULTS) | kept))
    except (TypeError, ValueError, AttributeError, KeyError, ImportError) as error:
        raise ALoRAError(f"{what} is no configuration of a LoRA adapter: {str(error)[:200]}") from error


def _refused_patterns(settings: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """The patterns that are matched against every module's name and are not plain enough for that, with their keys."""
    for key in ("target_modules", "exclude_modules"):
        value = settings.get(key)
        if isinstance(value, str) and not is_plain_pattern(value):
            yield key, value
    for key in (*_BY_NAME, "layers_pattern", "modules_to_save"):
        names = settings.get(key) or ()
        for name in [names] if isinstance(names, str) else names:
            if not is_literal_name(name):
                yield key, name


@cache
def _types() -> dict[str, Any]:
    """The fields of a LoRA configuration, with the types that PEFT states, and those that it takes beyond them."""
    hints = get_type_hints(LoraConfig)
    stated = {item.name: hints[item.name] for item in fields(LoraConfig)}
    numbers = dict[str, float]
    return stated | {
        "lora_alpha": float,
        "init_lora_weights": bool | str,
        "rank_pattern": dict[str, int],
        "alpha_pattern": numbers,
        "peft_type": str,
        "task_type": str,
    }


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value out of a JSON file is of a type; of a dataclass it is an object."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin is Literal:
        return value in arguments
    if origin in (list, tuple):
        inner = arguments[0] if arguments else Any
        return isinstance(value, list) and all(_fits(item, inner) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, arguments[1]) for item in value.values())
    if hint in (bool, str, list, dict, type(None)):
        return isinstance(value, hint)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, dict)
