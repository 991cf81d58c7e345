"""theta* in a map's folder: an ordinary PEFT adapter, read as the work of a stranger.

PEFT's configuration can name modules to import and patterns to match; only what describes a plain LoRA adapter is let through.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from alora_trainer.artefact.entries import (
    MapConfig,
    ThetaEntries,
    WeightEntry,
    checked_tensor,
    checked_text,
    demand,
    described_tensors,
)
from alora_trainer.artefact.files import ADAPTER_CONFIG_FILE, ADAPTER_FILE, check_inside, read_json, shown, write_json
from alora_trainer.artefact.tensor_file import read_header, read_tensor
from alora_trainer.artefact.theta_storage import ThetaReader, ThetaStorage
from alora_trainer.basics.safetensors_writer import write_safetensors
from alora_trainer.basics.sizes import size_text
from alora_trainer.errors import ALoRAError
from alora_trainer.weights.parameterization import Parameterization
from alora_trainer.weights.reference import PEFT_PREFIX, Reference, Stack
from alora_trainer.weights.theta import AdapterTheta, Theta

# What says nothing about the adapter's weights: bookkeeping, and settings of what happens before or during training.
_BOOKKEEPING = frozenset(
    {"auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version", "runtime_config"}
)
# A repeated group that itself repeats: matching it against a name may take for ever.
_ENDLESS = re.compile(r"\)\s*[*+{]")


class AdapterStorage(ThetaStorage):
    """An ordinary PEFT adapter, as PEFT itself writes it."""

    section = "adapter"
    files = (ADAPTER_CONFIG_FILE, ADAPTER_FILE)
    library = "peft"
    relation = "adapter"
    tags = ("lora",)

    def write(self, folder: Path, theta: Theta) -> ThetaEntries:
        assert isinstance(theta, AdapterTheta)
        if theta.config is None:
            raise ALoRAError(
                "the importance map has no configuration of its adapter, so that PEFT could not read it: make its theta* as "
                "AdapterTheta(references, state, config)"
            )
        state, settings = theta.state, plain_settings(theta.config)
        types = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
        digests = write_safetensors(folder / ADAPTER_FILE, types, state.__getitem__)
        write_json(folder / ADAPTER_CONFIG_FILE, settings)
        tensors = described_tensors(ADAPTER_FILE, types, digests)
        return ThetaEntries(Parameterization.ADAPTER, tensors, settings_digest(settings))

    def weight_entry(self, reference: Reference, base_sample: list[float] | None) -> WeightEntry:
        return WeightEntry(reference.shape, reference.scaling, base_sample, reference.stack)

    def section_content(self, theta: ThetaEntries) -> dict[str, Any]:
        tensors = {key: asdict(entry) for key, entry in theta.tensors.items()}
        return {"settings_sha256": theta.settings, "tensors": tensors}

    def parse_section(self, content: Mapping[str, Any]) -> ThetaEntries:
        tensors = {key: checked_tensor(entry) for key, entry in content["tensors"].items()}
        return ThetaEntries(Parameterization.ADAPTER, tensors, checked_text(content["settings_sha256"]))

    def check(self, config: MapConfig) -> None:
        demand({ADAPTER_FILE, ADAPTER_CONFIG_FILE} <= set(config.files), "the adapter's files are not listed")
        demand(all(weight.scaling is not None for weight in config.weights.values()), "a weight has no scaling")

    def open(self, folder: Path, config: MapConfig) -> ThetaReader:
        return _AdapterReader(folder, config)

    def rewritten_for_public(self, folder: Path, target: Path, base_model: str | None) -> dict[str, Path]:
        return {ADAPTER_CONFIG_FILE: write_public_adapter_config(folder, target, base_model)}

    def described(self, config: MapConfig) -> tuple[str, str]:
        return "adapter", f"{len(config.theta.tensors)} tensors, {size_text(config.files[ADAPTER_FILE])}"


class _AdapterReader(ThetaReader):
    """Reads the whole adapter, which is small, at once."""

    def __init__(self, folder: Path, config: MapConfig) -> None:
        assert config.theta.settings is not None  # as `read_config` has it for every map with an adapter
        self._weights = config.weights
        self._state = read_adapter(folder, config)
        self._config = read_adapter_config(folder, config.theta.settings)

    def theta(self, names: Sequence[str]) -> AdapterTheta:
        references = {name: reference(name, self._state, weight) for name, weight in self._weights.items()}
        return AdapterTheta(references, self._state, self._config).restricted(names)

    def theta_of(self, name: str) -> AdapterTheta:
        return AdapterTheta({name: reference(name, self._state, self._weights[name])})


def write_public_adapter_config(folder: Path, target: Path, base_model: str | None) -> Path:
    """An adapter's configuration with no path of this machine in it, written into the folder `target`."""
    settings = read_json(check_inside(folder, ADAPTER_CONFIG_FILE))
    settings |= {"base_model_name_or_path": base_model, "auto_mapping": None}
    write_json(target / ADAPTER_CONFIG_FILE, settings)
    return target / ADAPTER_CONFIG_FILE


def plain_settings(config: Any) -> dict[str, Any]:
    """A PEFT configuration as plain JSON, without the name of a module to import."""
    settings = json.loads(json.dumps(config.to_dict(), default=_as_plain))
    settings["auto_mapping"] = None
    return dict(settings)


def _as_plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)


def settings_digest(settings: Mapping[str, Any]) -> str:
    """A digest of what an adapter's configuration says of its weights, whoever wrote the file."""
    said = {key: _order_free(key, value) for key, value in settings.items() if key not in _BOOKKEEPING}
    # A newer PEFT writes further keys, whose defaults say nothing.
    said = {key: value for key, value in said.items() if value not in (None, False, {}, [])}
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()


def _order_free(key: str, value: Any) -> Any:
    return (
        sorted(map(str, value)) if key in ("target_modules", "exclude_modules") and isinstance(value, list) else value
    )


def read_adapter_config(folder: Path, digest: str) -> Any:
    """PEFT's configuration of theta*, checked.

    Raises:
        ALoRAError: it is missing or damaged, is not the one that the map was written with, or asks for more than a plain
            LoRA adapter.
    """
    path = check_inside(folder, ADAPTER_CONFIG_FILE)
    settings = read_json(path)
    if settings_digest(settings) != digest:
        raise ALoRAError(f"{path} is not the adapter's configuration that the map was written with: fetch it again")
    return checked_adapter_config(settings, str(path))


def checked_adapter_config(settings: Mapping[str, Any], what: str) -> Any:
    """A `peft.LoraConfig` from untrusted settings.

    Raises:
        ALoRAError: they are no plain LoRA adapter's.
    """
    known = {item.name for item in fields(LoraConfig)}
    unknown = [key for key, value in settings.items() if key not in known and value not in (None, False, {}, [])]
    unknown = [key for key in unknown if key != "peft_version"]
    if unknown:
        raise ALoRAError(
            f"{what} has settings that this PEFT does not know ({shown(', '.join(unknown[:3]))}): update peft"
        )
    if settings.get("peft_type") != "LORA":
        raise ALoRAError(
            f"{what} is of the type {shown(settings.get('peft_type'))}: an importance map has a LORA adapter"
        )
    for key, kind in {
        "auto_mapping": dict,
        "base_model_name_or_path": str,
        "revision": str,
        "inference_mode": bool,
    }.items():
        if not isinstance(settings.get(key), (kind, type(None))):
            raise ALoRAError(
                f"{what} has {key} of the type {type(settings[key]).__name__}: it is damaged, fetch it again"
            )
    library = (settings.get("auto_mapping") or {}).get("parent_library", "transformers")
    if str(library).split(".")[0] != "transformers":
        raise ALoRAError(
            f"{what} wants the module {shown(library)} imported (auto_mapping), which is refused: remove it"
        )
    if settings.get("megatron_config") is not None:
        raise ALoRAError(f"{what} wants Megatron layers (megatron_config), which are not supported: remove it")
    for pattern in _patterns(settings):
        if len(pattern) > 2000 or _ENDLESS.search(pattern):
            raise ALoRAError(f"{what} has the pattern {pattern[:60]!r}, which may take for ever to match: refused")
    kept = {
        key: value for key, value in settings.items() if key in known and key not in ("auto_mapping", "runtime_config")
    }
    try:
        return LoraConfig(**kept)
    except (TypeError, ValueError, AttributeError, KeyError, ImportError) as error:
        raise ALoRAError(f"{what} is no configuration of a LoRA adapter: {str(error)[:200]}") from error


def _patterns(settings: Mapping[str, Any]) -> Iterable[str]:
    for key in ("target_modules", "exclude_modules", "layers_pattern"):
        value = settings.get(key)
        if isinstance(value, str):
            yield value
    for key in ("rank_pattern", "alpha_pattern"):
        yield from map(str, settings.get(key) or {})


def read_adapter(folder: Path, config: MapConfig) -> dict[str, torch.Tensor]:
    """theta*'s state dict, every tensor of it checked.

    Raises:
        ALoRAError: the file is missing or damaged, or has other tensors than the map's config says.
    """
    path = check_inside(folder, ADAPTER_FILE)
    header = read_header(path)
    if set(header) != set(config.theta.tensors):
        raise ALoRAError(f"{path} has other tensors than the importance map's config names: fetch it again")
    state = {key: read_tensor(path, header, entry) for key, entry in config.theta.tensors.items()}
    for key, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise ALoRAError(f"{key} in {path} holds NaN, infinite or absurdly large values: record the map again")
    return state


def reference(name: str, state: Mapping[str, torch.Tensor], weight: WeightEntry) -> Reference:
    """theta* of one weight out of the adapter's state dict.

    Raises:
        ALoRAError: its factors are missing or do not make a matrix of `shape`.
    """
    shape, scaling = weight.shape, weight.scaling
    assert scaling is not None
    module = name if weight.stack is None else weight.stack.module
    for a_key, b_key in (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B")):
        keys = tuple(f"{PEFT_PREFIX}{module}.{key}" for key in (a_key, b_key))
        if all(key in state for key in keys):
            a, b = state[keys[0]], state[keys[1]]
            if a.dim() < 2 or b.dim() < 2:
                break
            a, b = _of_expert(name, a.flatten(1), b.flatten(1), weight.stack)
            if (b.shape[0], a.shape[1]) != shape or a.shape[0] != b.shape[1]:
                raise ALoRAError(
                    f"the factors of {name} in {ADAPTER_FILE} do not make a {shape} matrix: fetch it again"
                )
            return Reference(a, b, scaling, weight.stack)
    raise ALoRAError(f"{ADAPTER_FILE} has no factors of {name}: fetch or record the map again")


def _of_expert(name: str, a: torch.Tensor, b: torch.Tensor, stack: Stack | None) -> tuple[torch.Tensor, torch.Tensor]:
    """One expert's factors out of its stack's."""
    if stack is None:
        return a, b
    if a.shape[0] % stack.experts or b.shape[1] % stack.experts:
        raise ALoRAError(f"the factors of {name} in {ADAPTER_FILE} are not of {stack.experts} experts: fetch it again")
    return stack.of_a(a), stack.of_b(b)
