"""What a map is, from its config and the headers of its files alone: nothing large is read or fetched."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from alora_trainer.artefact.cards.basis import kept_text, labels_text
from alora_trainer.artefact.cards.facts import data_text
from alora_trainer.artefact.config_file import read_config
from alora_trainer.artefact.entries import MapConfig, TensorEntry
from alora_trainer.artefact.files import check_inside
from alora_trainer.artefact.hub.download import cached_origin, fetch_config, split_id
from alora_trainer.artefact.hub.errors import hub_errors
from alora_trainer.artefact.map_folder import present_folder
from alora_trainer.artefact.tensor_file import TORCH_NAMES, TensorHeader, check_header, read_header
from alora_trainer.artefact.theta_files import THETA_FILES
from alora_trainer.basics.sizes import size_text
from alora_trainer.importance.kinds.formats import KINDS, storage_format
from alora_trainer.importance.kinds.in_basis import InBasis
from alora_trainer.importance.origin import ImportanceInfo
from alora_trainer.importance.selection import block_number
from alora_trainer.weights.theta import BaseTheta

_INDENT = " " * 14
Header = Callable[[str], dict[str, TensorHeader]]


@dataclass(frozen=True)
class Inspected:
    """A map whose files' headers are as its config says.

    Attributes:
        title: where it is: a folder, or repository and commit.
        config: what it says of itself.
    """

    title: str
    config: MapConfig

    def text(self, width: int | None = None) -> str:
        """A few lines for people, of at most `width` characters."""
        lines = _lines(self.config)
        if width is not None:
            lines = [textwrap.fill(line, width, subsequent_indent=_INDENT, break_on_hyphens=False) for line in lines]
        return "\n".join([self.title, *lines])

    def to_json(self) -> dict[str, Any]:
        """The same as plain data, with every weight; sizes in bytes."""
        config = self.config
        return {
            "source": self.title,
            "kind": config.kind,
            "storage": config.storage,
            "formats": {name: config.format_bytes(name) for name in config.formats},
            "at_base_weights": config.theta.type is BaseTheta,
            "weights": {
                name: {"shape": list(weight.shape), "norm": config.layer_norms.get(name)}
                for name, weight in config.weights.items()
            },
            **asdict(config.info),
        }


def describe(source: str, *, revision: str | None = None, token: str | bool | None = None) -> str:
    """What `inspect_map` finds, for people."""
    return inspect_map(source, revision=revision, token=token).text()


def inspect_map(source: str, *, revision: str | None = None, token: str | bool | None = None) -> Inspected:
    """A map in a folder or on the Hub, after comparing its files' headers with its config.

    Raises:
        ALoRAError: there is none, or a file's header does not fit the config.
    """
    folder = Path(source)
    if folder.is_dir():
        folder = present_folder(folder)
        config = read_config(folder)
        origin = cached_origin(folder)
        title, header = str(origin or source), _local_header(folder)
    else:
        repo_id, revision = split_id(source, revision)
        folder, config = fetch_config(repo_id, revision=revision, token=token)
        title, header = f"{repo_id}@{folder.name}", _remote_header(repo_id, folder, token)
    check_headers(config, header)
    return Inspected(title, config)


def check_headers(config: MapConfig, header: Header) -> None:
    """Compare every tensor that the config describes with the header of its file.

    Raises:
        ALoRAError: one is not as described.
    """
    entries: list[TensorEntry] = [*config.theta.tensors.values()]
    entries += [part for parts in config.formats.values() for weight in parts.values() for part in weight.values()]
    headers = {file: header(file) for file in dict.fromkeys(entry.file for entry in entries)}
    for entry in entries:
        check_header(Path(entry.file), headers[entry.file], entry)


def _local_header(folder: Path) -> Header:
    return lambda file: read_header(check_inside(folder, file))


def _remote_header(repo_id: str, folder: Path, token: str | bool | None) -> Header:
    """Headers of a repository's files: from the cache where a file is there, else by a request for these bytes alone."""
    api = HfApi(token=token)

    def header(file: str) -> dict[str, TensorHeader]:
        if (folder / file).is_file():
            return read_header(check_inside(folder, file))
        with hub_errors(repo_id, folder.name, "inspected"):
            found = api.parse_safetensors_file_metadata(repo_id, file, revision=folder.name)
        return {
            name: TensorHeader(TORCH_NAMES.get(tensor.dtype, tensor.dtype), tuple(tensor.shape))
            for name, tensor in found.tensors.items()
        }

    return header


def _lines(config: MapConfig) -> list[str]:
    info = config.info
    blocks = sorted({number for number in map(block_number, config.weights) if number is not None})
    elements = sum(math.prod(weight.shape) for weight in config.weights.values())
    kinds = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in config.weights))
    within = f", blocks {blocks[0]} to {blocks[-1]}" if blocks else ""
    revision = f", revision {info.base_revision}" if info.base_revision else ""
    theta_label, theta_text = THETA_FILES[config.theta.type].described(config)
    rows = {
        "base model": f"{info.base_model or 'not named'}{revision}",
        "weights": f"{len(config.weights)} ({kinds}{within}), {elements:,} elements",
        "kind": f"{config.kind}: {formula}" if (formula := KINDS.find(config.kind).formula) else config.kind,
        "kept": kept_text(config) if issubclass(storage_format(config.storage), InBasis) else "",
        "estimator": _estimator(info),
        "labels": labels_text(info.labels, info.draws).removeprefix("; ").removeprefix("labels "),
        "recorded": (
            f"{info.steps:,} batches, {info.tokens:,} tokens, at the base weights"
            if config.theta.type is BaseTheta
            else f"{info.steps:,} steps, {info.tokens:,} tokens, {info.optimizer}, learning rate {info.learning_rate}"
        ),
        "text": data_text(info.data),
        "earlier tasks": str(len(info.earlier_tasks)) if info.earlier_tasks else "",
        "formats": ", ".join(
            f"{name} {size_text(config.format_bytes(name))} in {_files(len(config.omega_files(name)))}"
            for name in config.formats
        ),
        theta_label: theta_text,
        "licence": info.license or "not stated",
        "software": ", ".join(f"{name} {version}" for name, version in info.versions.items()),
    }
    return [f"{name:<{len(_INDENT)}}{value}" for name, value in rows.items() if value]


def _estimator(info: ImportanceInfo) -> str:
    facts = [str(info.estimator)]
    facts += [f"xi {info.xi}"] if info.xi is not None else []
    facts += [f"xi {info.xi_share:.3g} of the mean squared movement"] if info.xi_share is not None else []
    return ", ".join(facts + ([f"along {info.basis}"] if info.basis is not None else []))


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"
