"""`ImportanceMap`: how much every element of the adapted weights mattered, with the weights theta* it was measured at."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from alora_trainer.adapted import AdaptedWeight, adapted_weights
from alora_trainer.errors import ALoRAError
from alora_trainer.importance.base_model import check_base
from alora_trainer.importance.checks import LARGEST_NORM
from alora_trainer.importance.info import ImportanceInfo, Origin, Reference
from alora_trainer.importance.layers import Layers, select_weights
from alora_trainer.importance.storage import StoredOmega, store

__all__ = ["ImportanceInfo", "ImportanceMap", "Reference"]

# Large enough for a few files only, small enough for some transformer blocks to be fetched without the others.
MAX_SHARD_BYTES = 1 << 29


class ImportanceMap(Mapping[str, torch.Tensor]):
    """Omega of every adapted weight by module name, with theta* and its provenance.

    Indexing gives the literal Omega of eq. 15, (out_features, in_features), never a normalised one. Adding two maps adds
    their importance up and keeps the right one's theta*, as learning one task after the other does.

    Args:
        omega: by module name (as the base model knows it), non-negative, (out_features, in_features); a plain tensor is kept
            as exactly as its dtype is.
        reference: theta* by the same names.
        adapter_state: theta* as PEFT's own state dict (``get_peft_model_state_dict``), so that it can be saved as an adapter.
        adapter_config: PEFT's configuration of that adapter.
        base_samples: a few base weights by name (`AdaptedWeight.base_sample`), to tell one base model from another.
        info: provenance.
        origin: the Hub repository that the map was fetched from, if it was.

    Raises:
        ALoRAError: an Omega is negative, not finite, absurdly large, or does not fit its reference.
    """

    def __init__(
        self,
        omega: Mapping[str, torch.Tensor | StoredOmega],
        reference: Mapping[str, Reference],
        *,
        adapter_state: Mapping[str, torch.Tensor],
        adapter_config: Any,
        base_samples: Mapping[str, list[float] | None] | None = None,
        info: ImportanceInfo | None = None,
        origin: Origin | None = None,
    ) -> None:
        self._omega = {name: o if isinstance(o, StoredOmega) else store(o) for name, o in omega.items()}
        self.reference = dict(reference)
        self.adapter_state = dict(adapter_state)
        self.adapter_config = adapter_config
        self.base_samples = dict(base_samples or {})
        self.info = info or ImportanceInfo()
        self.origin = origin
        self._norms: dict[str, float] = {}
        self._sums: dict[str, float] = {}
        for name in self._omega:
            self._measure(name)

    def _measure(self, name: str) -> None:
        omega, reference = self._omega[name], self.reference.get(name)
        if reference is None:
            raise ALoRAError(f"the importance map has no reference weights for {name}: record it again")
        if omega.shape != (reference.b.shape[0], reference.a.shape[1]):
            raise ALoRAError(f"importance and reference of {name} differ in shape: the map is damaged, record it again")
        total, squares, smallest = omega.measure()
        if not (math.isfinite(squares) and math.isfinite(total)):
            raise ALoRAError(
                f"the importance of {name} holds NaN or infinite values: the map is damaged, record it again"
            )
        if smallest < 0:
            raise ALoRAError(f"the importance of {name} holds negative values: the map is damaged, record it again")
        norm = math.sqrt(squares)
        if norm > LARGEST_NORM:
            raise ALoRAError(
                f"the importance of {name} is absurdly large ({norm:.3g}): the map is damaged, record it again"
            )
        self._norms[name], self._sums[name] = norm, total

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.stored(name).dense()

    def stored(self, name: str) -> StoredOmega:
        """Omega of one weight in the format that it is kept in."""
        try:
            return self._omega[name]
        except KeyError:
            raise KeyError(f"no importance of {name!r}; this map has {', '.join(list(self._omega)[:4])}, ...") from None

    @property
    def storage(self) -> str:
        """The name of the storage format."""
        return next(iter(self._omega.values())).format if self._omega else "float32"

    @property
    def nbytes(self) -> int:
        """Bytes that Omega takes in memory and on disk."""
        return sum(omega.nbytes for omega in self._omega.values())

    def convert(self, storage: str) -> ImportanceMap:
        """The same map in another storage format ("float32", "bfloat16", "log8", "factored"); see `importance.storage`."""
        return self._with({name: store(self[name], storage) for name in self}, origin=self.origin)

    def select(self, layers: Layers) -> ImportanceMap:
        """The map of some weights alone, with an adapter of these alone.

        Args:
            layers: numbers of transformer blocks, and names or patterns ("*.q_proj") of weights.

        Raises:
            ALoRAError: one of `layers` means no weight of this map.
        """
        from alora_trainer.importance.adapter_file import restricted

        names = select_weights(self, layers)
        state, config = restricted(self.adapter_state, self.adapter_config, names)
        return self._with({name: self.stored(name) for name in names}, adapter_state=state, adapter_config=config)

    def with_info(self, **changes: Any) -> ImportanceMap:
        """The same map with other facts in its `info`, such as ``data`` or ``license``."""
        changed = copy.copy(self)  # and not `_with`, which would look at every element again
        changed.info = replace(self.info, **changes)
        return changed

    def _with(self, omega: Mapping[str, torch.Tensor | StoredOmega], **changes: Any) -> ImportanceMap:
        kept = {
            "adapter_state": self.adapter_state,
            "adapter_config": self.adapter_config,
            "base_samples": self.base_samples,
            "info": self.info,
        }
        return ImportanceMap(omega, self.reference, **(kept | changes))

    def __iter__(self) -> Iterator[str]:
        return iter(self._omega)

    def __len__(self) -> int:
        return len(self._omega)

    def __repr__(self) -> str:
        return (
            f"ImportanceMap({len(self)} weights, {self.elements:,} elements, {self.storage}, {self.info.estimator!r})"
        )

    @property
    def elements(self) -> int:
        """How many elements Omega has, over all weights."""
        return sum(omega.shape[0] * omega.shape[1] for omega in self._omega.values())

    @property
    def layer_norms(self) -> dict[str, float]:
        """``||Omega_l||_2`` over the elements of each weight: eq. 17's layer weights, not normalised."""
        return dict(self._norms)

    @property
    def mean(self) -> float:
        """The mean of Omega over all elements of all weights."""
        return self.total(list(self)) / self.elements

    def total(self, names: Sequence[str]) -> float:
        """The sum of Omega over all elements of the weights in `names`."""
        return sum(self._sums[name] for name in names)

    def __add__(self, later: ImportanceMap) -> ImportanceMap:
        """Importance of both tasks, at the later task's theta*.

        Raises:
            ALoRAError: a weight of this map is missing from the later one, or has another shape.
        """
        if not isinstance(later, ImportanceMap):
            return NotImplemented
        for name, omega in self._omega.items():
            if name not in later or later.stored(name).shape != omega.shape:
                raise ALoRAError(f"the maps do not fit: {name} {omega.shape} is not in the later one with this shape")
        total = {
            name: store(later[name] + self[name].to(later[name]), later.stored(name).format)
            if name in self
            else later.stored(name)
            for name in later
        }
        own = {k: v for k, v in vars(self.info).items() if k not in ("earlier_tasks", "base_model", "base_revision")}
        earlier = (*self.info.earlier_tasks, own, *later.info.earlier_tasks)
        return later._with(total, info=replace(later.info, earlier_tasks=earlier))

    def check_model(self, model: torch.nn.Module, *, allow_other_revision: bool = False) -> list[AdaptedWeight]:
        """The adapted weights of `model`, after checking that this map was made for it.

        A map may cover weights that this model does not adapt (they do not move), never the other way round.

        Args:
            model: a PEFT model with one trainable LoRA adapter.
            allow_other_revision: take the map though it was recorded on another revision of the base model.

        Raises:
            ALoRAError: an adapted weight has no importance, has another shape, or belongs to another base model or another
                revision of it; a weight of the map does not exist in the model.
        """
        weights = adapted_weights(model)
        known = {weight.name: weight for weight in weights}
        missing = [name for name in known if name not in self]
        if missing:
            raise ALoRAError(
                f"the importance map has no importance of {_some(missing)}, which the adapter moves: "
                f"adapt only what was recorded ({_some(list(self))}), or record a map for these weights"
            )
        modules = {
            name.replace("_orig_mod.", "").removeprefix("base_model.model.") for name, _ in model.named_modules()
        }
        foreign = [name for name in self if name not in modules]
        if foreign:
            raise ALoRAError(
                f"the importance map is for another model{self._origin()}: this one has no {_some(foreign)}"
            )
        for name, weight in known.items():
            if self.stored(name).shape != weight.shape:
                raise ALoRAError(
                    f"the importance map is for another model{self._origin()}: {name} is {weight.shape} here and "
                    f"{self.stored(name).shape} in the map"
                )
        check_base(model, weights, self.info, self.base_samples, allow_other_revision=allow_other_revision)
        return weights

    def _origin(self) -> str:
        return f" ({self.info.base_model})" if self.info.base_model else ""

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
        from alora_trainer.importance.writing import save_map

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
            layers: read some weights alone: numbers of transformer blocks, and names or patterns ("*.q_proj").
            token: as in `huggingface_hub`.

        Raises:
            ALoRAError: nothing is there, it is no importance map, or it is damaged.
        """
        from alora_trainer.hub.download import fetch
        from alora_trainer.importance.reading import load_map

        folder, origin = fetch(str(source), revision=revision, storage=storage, layers=layers, token=token)
        return load_map(folder, storage=storage, layers=layers, origin=origin)

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
        from alora_trainer.hub.upload import push_map

        return push_map(self, repo_id, storage=storage, max_shard_bytes=max_shard_bytes, **settings)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
