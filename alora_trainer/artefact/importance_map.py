"""`ImportanceMap`: importance values with the doors to the world: a folder, the Hub, the model that they were made for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alora_trainer.artefact.hub.download import fetch, read_from
from alora_trainer.artefact.hub.upload import push_map
from alora_trainer.artefact.reading import load_map, load_share
from alora_trainer.artefact.writing import MAX_SHARD_BYTES, save_map
from alora_trainer.basics.processes import Processes
from alora_trainer.errors import ALoRAError
from alora_trainer.importance.importance_values import ImportanceValues
from alora_trainer.importance.matching import match_model
from alora_trainer.importance.origin import Origin
from alora_trainer.importance.selection import Layers
from alora_trainer.weights.full_weight import full_weights
from alora_trainer.weights.parameterization import Parameterization
from alora_trainer.weights.start import StartFrom
from alora_trainer.weights.trained_weight import TrainedWeight


class ImportanceMap(ImportanceValues):
    """The importance of every trained weight by module name, with theta* and its provenance; saved, published, and read again.

    See `ImportanceValues` for what it holds and how maps are added.
    """

    def check_model(
        self,
        model: torch.nn.Module,
        *,
        start: StartFrom | str | None = None,
        fresh_base: str | None = None,
        missing: str = "error",
        parameterization: Parameterization = Parameterization.ADAPTER,
        full_parameters: bool | None = None,
        allow_other_revision: bool = False,
    ) -> Sequence[TrainedWeight]:
        """The trained weights of `model`, after checking that this map was made for it.

        A map may cover weights that this model does not adapt (they do not move). The other way round is for `missing` to
        say. The rank of the adapter is free.

        Args:
            model: what is to be trained.
            start: as in `ALoRAConfig`: for "merged", the recorded adapter must be in the base weights, else (and for None) it
                must not.
            fresh_base: of an older spelling, see `StartFrom.parse`.
            missing: "error", or anything else to let weights without an importance pass.
            parameterization: what of the model is trained: a LoRA adapter, or the model itself.
            full_parameters: the same as `ALoRAConfig` says it; None leaves it to `parameterization`.
            allow_other_revision: take the map though it was recorded on another revision of the base model.

        Raises:
            ALoRAError: an adapted weight has no importance, has another shape, or belongs to another base model or another
                revision of it; a weight of the map does not exist in the model.
        """
        return match_model(
            self,
            model,
            start=None if start is None and fresh_base is None else StartFrom.parse(start or "recorded", fresh_base),
            missing=missing,
            parameterization=parameterization if full_parameters is None else Parameterization.of(full_parameters),
            allow_other_revision=allow_other_revision,
        )

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        storage: str | Sequence[str] | None = None,
        max_shard_bytes: int = MAX_SHARD_BYTES,
    ) -> None:
        """Write the artefact (what `files` describes) into `folder`, whole or not at all, tensor by tensor.

        Args:
            folder: made if need be; another map in it is replaced.
            storage: convert to this format while writing; several are written side by side, the first one being what
                `from_pretrained` reads if it is not told otherwise. None keeps the present one.
            max_shard_bytes: Omega is spread over several files of at most this size each (or of one weight), whole
                transformer blocks together, so that some blocks can be fetched without the others.

        Raises:
            ALoRAError: `folder` is a file; an unknown format.
        """
        save_map(self, Path(folder), storage=storage, max_shard_bytes=max_shard_bytes)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        storage: str | None = None,
        layers: Layers | None = None,
        token: str | bool | None = None,
    ) -> ImportanceMap:
        """Read a map from a folder or a Hub repository, checking all of it.

        Only the files that are needed are fetched. They go to the Hub's cache, and offline they come from there.

        Args:
            source: folder, Hub id ("organisation/name"), or Hub id and revision ("organisation/name@revision").
            revision: branch, tag or commit of the Hub repository.
            storage: the format to have it in: fetched if the repository has it, else converted from its first one while
                reading. None keeps the first one.
            layers: read some weights alone: numbers of transformer blocks, and names or patterns (``"*.q_proj"``).
            token: as in `huggingface_hub`.

        Raises:
            ALoRAError: nothing is there, it is no importance map, or it is damaged.
        """

        def read(folder: Path, origin: Origin | None) -> ImportanceMap:
            return load_map(folder, cls, storage=storage, layers=layers, origin=origin)

        return read_from(str(source), read, revision=revision, storage=storage, layers=layers, token=token)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        storage: str | Sequence[str] | None = None,
        max_shard_bytes: int = MAX_SHARD_BYTES,
        **settings: Any,
    ) -> str:
        """Publish the map: a repository that holds all of it or, if it is interrupted, nothing new.

        Args:
            repo_id: "organisation/name"; made if need be.
            storage, max_shard_bytes: as in `save_pretrained`.
            settings: `private`, `revision`, `token`, `commit_message`, `base_model`, `license`, `results`; see
                `hub.upload.push_map`.

        Returns:
            The commit's address.

        Raises:
            ALoRAError: the Hub does not take it; the message says why.
        """
        return push_map(self, repo_id, storage=storage, max_shard_bytes=max_shard_bytes, **settings)


def as_map(
    importance: ImportanceMap | str | os.PathLike[str], storage: str | None = None, *, own_share: bool = False
) -> ImportanceMap:
    """The map that a caller gave, itself or by its place.

    Args:
        importance: a map, or the folder or Hub id of one.
        storage: the format to have it in; None keeps the map's own.
        own_share: of several processes that call this together, let each read its own share of a map that is given by its
            place (`ImportanceValues.is_whole` says whether it did).

    Raises:
        ALoRAError: it is none of these, or there is no map at that place.
    """
    if isinstance(importance, (str, os.PathLike)):
        source = os.fspath(importance)
        if own_share and Processes().count > 1:
            folder, origin = fetch(source, storage=storage)
            try:
                return load_share(folder, ImportanceMap, storage=storage, origin=origin)
            except ALoRAError:
                # On all processes. Read whole, a map that arrived damaged is fetched again, or else refused by name.
                pass
        return ImportanceMap.from_pretrained(source, storage=storage)
    if isinstance(importance, ImportanceMap):
        return importance if storage is None else importance.convert(storage)
    raise ALoRAError(
        f"importance is of type {type(importance).__name__}: pass an ImportanceMap, or the folder or Hub id of one"
    )


def load_reference(model: nn.Module, importance: ImportanceMap | str | os.PathLike[str]) -> None:
    """Set the model's own weights to theta*, at which a map of full tuning was measured.

    Args:
        model: the base model.
        importance: the map, or the folder or Hub id of one.

    Raises:
        ALoRAError: there is no map; it is of an adapter; a weight of it is not in the model, or of another shape.
    """
    importance = as_map(importance)
    if importance.at_base:
        raise ALoRAError(
            "the importance map was measured at the base weights, where a model is as it was loaded: there is nothing to set"
        )
    if importance.parameterization is not Parameterization.FULL:
        raise ALoRAError(
            "the importance map was recorded with a LoRA adapter: load that with PeftModel.from_pretrained(base, MAP)"
        )
    weights = {weight.name: weight for weight in full_weights(model)}
    for name in importance:
        if name not in weights or weights[name].shape != importance.stored(name).shape:
            raise ALoRAError(f"the importance map is for another model: this one has no {name} of the map's shape")
        if not bool(torch.isfinite(importance.reference[name].weight.to(weights[name].parameter.dtype)).all()):
            raise ALoRAError(
                f"theta* of {name} is out of the range of {weights[name].parameter.dtype}: load the base in a wider one"
            )
    with torch.no_grad():
        for name in importance:
            parameter = weights[name].parameter
            parameter.copy_(importance.reference[name].weight.reshape(parameter.shape))
