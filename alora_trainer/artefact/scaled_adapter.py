"""A finished adapter times a number: the model on the straight line between the base model and the tuned one.

``W(alpha) = W0 + alpha * s B A`` (WiSE-FT, arXiv 2109.01903, for adapters). B carries alpha, in its own dtype: every program
that reads adapters reads B, whatever it makes of ``rank_pattern``, ``alpha_pattern``, ``use_rslora`` or an ``lora_alpha`` that
is no whole number. The configuration is the finished adapter's own, byte for byte.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from peft import LoraConfig
from safetensors import safe_open

from alora_trainer.artefact.adapter_config import checked_adapter_config
from alora_trainer.artefact.cards.adapter_card import RISES, write_adapter_card
from alora_trainer.artefact.cards.scaled_card import write_scaled_card
from alora_trainer.artefact.cards.tuning import PROMISES, TUNING_FILE, read_tuning
from alora_trainer.artefact.files import ADAPTER_CONFIG_FILE, ADAPTER_FILE, CARD_FILE, CONFIG_FILE, read_json
from alora_trainer.artefact.tensor_file import read_header
from alora_trainer.basics.files import write_json, write_text
from alora_trainer.basics.safetensors_writer import write_safetensors
from alora_trainer.basics.versions import software_versions
from alora_trainer.errors import ALoRAError
from alora_trainer.weights.adapter_settings import extras

_Types: TypeAlias = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]

SCALED_FILE = "scaled_adapter.json"
# What an adapter may do beside its factors and still be in proportion to B (and the bias beside it).
_IN_PROPORTION = ("lora_bias", "alora_invocation_tokens", "target_parameters", "init_lora_weights='eva'")
# Tensors by the ends of their names: what is multiplied, and what is left as it is.
_MULTIPLIED = ("lora_B.weight", "lora_B.bias", "lora_embedding_B")
_KEPT = ("lora_A.weight", "lora_embedding_A")
# Which weights are meant, and of what class the model is: of no matter here, where nothing is loaded.
_WHERE = frozenset(
    {
        *(
            "target_modules",
            "exclude_modules",
            "layers_to_transform",
            "layers_pattern",
            "rank_pattern",
            "alpha_pattern",
        ),
        "auto_mapping",
    }
)
# What a folder may have beside, for whoever loads its tokenizer.
_BESIDE = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template*")


def scale_adapter(source: Path, alpha: float, target: Path) -> Path:
    """Write the adapter in `source` times `alpha` into the folder `target`, which appears whole or not at all.

    Args:
        source: a folder with a LoRA adapter of PEFT's, of the base model as it is.
        alpha: 0 would be the base model and 1 is the adapter itself; what lies beyond 1 goes on in the same direction.
        target: a new folder. Where it is there, made from the same adapter with the same alpha, it is left as it is.

    Returns:
        `target`.

    Raises:
        ALoRAError: alpha is no positive number; `source` has no such adapter, or one whose effect is not in proportion to B
            (the message names the setting); `target` holds something else.
    """
    if not (math.isfinite(alpha) and alpha > 0):
        raise ALoRAError(f"alpha={alpha!r} must be a positive number: 0.5 is halfway between the base and the adapter")
    settings, types = _checked(source)
    times = alpha * _times_before(source)
    record = {"alpha": alpha, "times": times, "adapter": _digests(source), "versions": software_versions()}
    if _is_there(target, record):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", suffix=".partial", dir=target.parent))
    try:
        _write(source, settings, types, record, partial)
        write_json(partial / SCALED_FILE, record)
        partial.chmod(0o755)
        if target.is_dir():
            target.rmdir()  # it is empty
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return target


def refuse_out_of_proportion(config: Any, what: str) -> None:
    """Raise ALoRAError for an adapter whose effect on the model is not in proportion to B.

    Args:
        config: PEFT's, of whatever kind.
        what: the adapter, for the message.
    """
    for setting, extra in extras(config):
        if not any(setting == one or setting.startswith(f"{one}=") for one in _IN_PROPORTION):
            raise ALoRAError(
                f"{what} cannot be scaled: {setting} {extra.words}, so that a part of the factor B is not a part of the "
                "way from the base model to the tuned one"
            )


def _checked(source: Path) -> tuple[dict[str, Any], _Types]:
    """The adapter's configuration, and its tensors by name, once it is known that it can be scaled."""
    if (source / CONFIG_FILE).is_file():
        raise ALoRAError(f"{source} is an importance map: give the folder of an adapter that was tuned")
    if not (source / ADAPTER_CONFIG_FILE).is_file():
        instead = "a whole model" if (source / "config.json").is_file() else "no adapter"
        raise ALoRAError(f"{source} holds {instead}: give a folder with {ADAPTER_CONFIG_FILE} in it")
    settings = read_json(source / ADAPTER_CONFIG_FILE)
    if settings.get("peft_type") != "LORA":
        raise ALoRAError(
            f"{source} has an adapter of the kind {settings.get('peft_type')!r}: only LoRA's can be scaled"
        )
    what = str(source / ADAPTER_CONFIG_FILE)
    config: LoraConfig = checked_adapter_config({k: v for k, v in settings.items() if k not in _WHERE}, what)
    refuse_out_of_proportion(config, f"the adapter in {source}")
    if not (source / ADAPTER_FILE).is_file():
        raise ALoRAError(f"{source} has no {ADAPTER_FILE}: save the adapter with safe_serialization=True")
    types = {
        name: (getattr(torch, header.dtype), header.shape)
        for name, header in read_header(source / ADAPTER_FILE).items()
    }
    other = next((name for name in types if not name.endswith(_MULTIPLIED + _KEPT)), None)
    if other is not None:
        raise ALoRAError(
            f"the adapter in {source} cannot be scaled: {other} is not one of LoRA's factors, and what the base model has "
            "in its place is not in the file; if nothing but LoRA's factors was trained, save the adapter with "
            "save_embedding_layers=False"
        )
    return settings, types


def _digests(source: Path) -> dict[str, str]:
    """The sha256 of the two files that say what an adapter is."""
    return {
        name: hashlib.sha256((source / name).read_bytes()).hexdigest() for name in (ADAPTER_CONFIG_FILE, ADAPTER_FILE)
    }


def _is_there(target: Path, record: Mapping[str, Any]) -> bool:
    """Whether the very adapter is at `target`.

    Raises:
        ALoRAError: something else is.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    found = read_json(target / SCALED_FILE) if (target / SCALED_FILE).is_file() else {}
    if all(found.get(key) == record[key] for key in ("alpha", "adapter")) and (target / ADAPTER_FILE).is_file():
        return True
    raise ALoRAError(f"{target} holds something else already: choose another --output_dir, or remove it")


def _times_before(source: Path) -> float:
    """What the adapter in `source` was multiplied by before, as its own note says."""
    found = read_json(source / SCALED_FILE).get("times") if (source / SCALED_FILE).is_file() else 1.0
    if not isinstance(found, (int, float)) or found <= 0:
        raise ALoRAError(f"{source / SCALED_FILE} is damaged: scale the finished adapter itself again")
    return float(found)


def _write(source: Path, settings: Mapping[str, Any], types: _Types, record: Mapping[str, Any], folder: Path) -> None:
    alpha, times = record["alpha"], record["times"]
    shutil.copyfile(source / ADAPTER_CONFIG_FILE, folder / ADAPTER_CONFIG_FILE)
    with safe_open(source / ADAPTER_FILE, framework="pt") as file:
        write_safetensors(folder / ADAPTER_FILE, types, lambda name: _scaled(name, file.get_tensor, alpha))
    for pattern in _BESIDE:
        for path in source.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
    if (source / TUNING_FILE).is_file():
        tuning = read_tuning(source)
        # What the map predicted, a probe measured and a fit promised was of the adapter as it was.
        training = {key: value for key, value in tuning.training.items() if key not in (*RISES, PROMISES)}
        tuning = replace(tuning, training={**training, "times": times})
        write_text(folder / TUNING_FILE, tuning.to_json())
        write_adapter_card(tuning, folder / CARD_FILE)
        return
    write_scaled_card(settings.get("base_model_name_or_path"), settings.get("revision"), times, folder / CARD_FILE)


def _scaled(name: str, read: Callable[[str], torch.Tensor], alpha: float) -> torch.Tensor:
    tensor = read(name)
    if not name.endswith(_MULTIPLIED):
        return tensor
    scaled = (tensor.double() * alpha).to(tensor.dtype)
    if not bool(torch.isfinite(scaled.float()).all()):
        raise ALoRAError(
            f"{name} times {alpha:g} is not finite in {tensor.dtype}: train the adapter again, or take less"
        )
    return scaled
