"""theta* in a map's folder: an ordinary PEFT adapter, read as the work of a stranger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import check_target_module_exists

from alora_trainer.artefact.adapter_config import (
    check_digest,
    checked_adapter_config,
    plain_settings,
    settings_digest,
)
from alora_trainer.artefact.entries import (
    MapConfig,
    ThetaEntries,
    WeightEntry,
    checked_tensor,
    checked_text,
    demand,
    described_tensors,
)
from alora_trainer.artefact.files import ADAPTER_CONFIG_FILE, ADAPTER_FILE, check_inside, read_json, write_json
from alora_trainer.artefact.tensor_file import read_header, read_tensor
from alora_trainer.artefact.theta_storage import ThetaReader, ThetaStorage
from alora_trainer.basics.safetensors_writer import write_safetensors
from alora_trainer.basics.sizes import size_text
from alora_trainer.errors import ALoRAError
from alora_trainer.weights.reference import PEFT_PREFIX, Reference, Stack
from alora_trainer.weights.theta import AdapterTheta, Theta


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
        state, settings = theta.state, plain_settings(theta.config, _modules(theta))
        types = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
        digests = write_safetensors(folder / ADAPTER_FILE, types, state.__getitem__)
        write_json(folder / ADAPTER_CONFIG_FILE, settings)
        tensors = described_tensors(ADAPTER_FILE, types, digests)
        return ThetaEntries(AdapterTheta, tensors, settings_digest(settings))

    def weight_entry(self, reference: Reference, base_sample: list[float] | None) -> WeightEntry:
        return WeightEntry(reference.shape, reference.scaling, base_sample, reference.stack)

    def section_content(self, theta: ThetaEntries) -> dict[str, Any]:
        tensors = {key: asdict(entry) for key, entry in theta.tensors.items()}
        return {"settings_sha256": theta.settings, "tensors": tensors}

    def parse_section(self, content: Mapping[str, Any]) -> ThetaEntries:
        tensors = {key: checked_tensor(entry) for key, entry in content["tensors"].items()}
        return ThetaEntries(AdapterTheta, tensors, checked_text(content["settings_sha256"]))

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
        left_out = [
            name for name, weight in config.weights.items() if weight.stack is None and not _adapts(self._config, name)
        ]
        if left_out:
            raise ALoRAError(
                f"{folder / ADAPTER_CONFIG_FILE} does not adapt {left_out[0]}, whose importance the map has: fetch it again"
            )

    def theta(self, names: Sequence[str]) -> AdapterTheta:
        references = {name: reference(name, self._state, weight) for name, weight in self._weights.items()}
        return AdapterTheta(references, self._state, self._config).restricted(names)

    def theta_of(self, name: str) -> AdapterTheta:
        return AdapterTheta({name: reference(name, self._state, self._weights[name])})


def _adapts(config: Any, module: str) -> bool:
    return config.target_modules is not None and bool(check_target_module_exists(config, module))


def _modules(theta: AdapterTheta) -> list[str]:
    """The modules that theta* adapts; of a stack of experts its parameter."""
    ends = {name: f".{item.stack.expert}" if item.stack is not None else "" for name, item in theta.items()}
    return list(dict.fromkeys(name.removesuffix(end) for name, end in ends.items()))


def write_public_adapter_config(folder: Path, target: Path, base_model: str | None) -> Path:
    """An adapter's configuration with no path of this machine in it, written into the folder `target`."""
    settings = read_json(check_inside(folder, ADAPTER_CONFIG_FILE))
    settings |= {"base_model_name_or_path": base_model, "auto_mapping": None}
    write_json(target / ADAPTER_CONFIG_FILE, settings)
    return target / ADAPTER_CONFIG_FILE


def read_adapter_config(folder: Path, digest: str) -> Any:
    """PEFT's configuration of theta*, checked.

    Raises:
        ALoRAError: it is missing or damaged, is not the one that the map was written with, or asks for more than a plain
            LoRA adapter.
    """
    path = check_inside(folder, ADAPTER_CONFIG_FILE)
    settings = read_json(path)
    found = checked_adapter_config(settings, str(path))
    check_digest(settings, digest, str(path))
    return found


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
