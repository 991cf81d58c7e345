"""`ImportanceMap`: how much every element of the adapted weights mattered, with the weights theta* it was measured at."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.checks import LARGEST_NORM
from alora_trainer.importance.info import ImportanceInfo, Origin
from alora_trainer.importance.layers import Layers, select_weights
from alora_trainer.importance.reference import FullReference, Reference
from alora_trainer.importance.storage import StoredOmega, store, uniform
from alora_trainer.weights import TrainedWeight

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
        adapter_config: PEFT's configuration of that adapter; None where the weights themselves were tuned.
        base_samples: a few base weights by name (`TrainedWeight.base_sample`), to tell one base model from another.
        info: provenance.
        origin: the Hub repository that the map was fetched from, if it was.

    Raises:
        ALoRAError: an Omega is negative, not finite, absurdly large, or does not fit its reference.
    """

    def __init__(
        self,
        omega: Mapping[str, torch.Tensor | StoredOmega],
        reference: Mapping[str, Reference | FullReference],
        *,
        adapter_state: Mapping[str, torch.Tensor],
        adapter_config: Any,
        base_samples: Mapping[str, list[float] | None] | None = None,
        info: ImportanceInfo | None = None,
        origin: Origin | None = None,
    ) -> None:
        self._omega = {name: o if isinstance(o, StoredOmega) else store(o) for name, o in omega.items()}
        self.reference: dict[str, Any] = dict(reference)
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
        if omega.shape != reference.shape:
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
    def is_full(self) -> bool:
        """Whether theta* is the weights themselves (full tuning), and not an adapter on them."""
        return any(isinstance(reference, FullReference) for reference in self.reference.values())

    @property
    def nbytes(self) -> int:
        """Bytes that Omega takes in memory and on disk."""
        return sum(omega.nbytes for omega in self._omega.values())

    def convert(self, storage: str) -> ImportanceMap:
        """The same map in another storage format ("float32", "bfloat16", "log8", "factored"); see `importance.storage`.

        Raises:
            ALoRAError: there is no such format.
        """
        if storage == self.storage:
            return self
        return self._with({name: store(self[name], storage) for name in self}, origin=self.origin)

    def select(self, layers: Layers) -> ImportanceMap:
        """The map of some weights alone, with a theta* of these alone.

        Args:
            layers: numbers of transformer blocks, and names or patterns ("*.q_proj") of weights.

        Raises:
            ALoRAError: one of `layers` means no weight of this map.
        """
        from alora_trainer.importance.adapter_file import restricted

        names = select_weights(self, layers)
        state, config = self.adapter_state, self.adapter_config
        if not self.is_full:
            state, config = restricted(state, config, names)
        return self._with(
            {name: self.stored(name) for name in names},
            reference={name: self.reference[name] for name in names},
            base_samples={name: self.base_samples.get(name) for name in names},
            adapter_state=state,
            adapter_config=config,
        )

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
            "reference": self.reference,
        }
        return ImportanceMap(omega, **(kept | changes))

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

    def check_model(
        self,
        model: torch.nn.Module,
        *,
        start: str = "continue",
        fresh_base: str = "merged",
        missing: str = "error",
        full_parameters: bool = False,
        allow_other_revision: bool = False,
    ) -> Sequence[TrainedWeight]:
        """The trained weights of `model`, after checking that this map was made for it.

        A map may cover weights that this model does not adapt (they do not move). The other way round is for `missing` to
        say. The rank of the adapter is free.

        Args:
            model: with a trainable LoRA adapter.
            start, fresh_base: as in `ALoRAConfig`: a "fresh" adapter over the "merged" base has the recorded adapter in its
                base weights, and that is checked.
            missing: "error", or anything else to let weights without an importance pass.
            full_parameters: the model is tuned itself, without an adapter.
            allow_other_revision: take the map though it was recorded on another revision of the base model.

        Raises:
            ALoRAError: an adapted weight has no importance, has another shape, or belongs to another base model or another
                revision of it; a weight of the map does not exist in the model.
        """
        from alora_trainer.importance.matching import match_model

        return match_model(
            self,
            model,
            start=start,
            fresh_base=fresh_base,
            missing=missing,
            full_parameters=full_parameters,
            allow_other_revision=allow_other_revision,
        )

    def with_uniform(self, weights: Sequence[TrainedWeight]) -> ImportanceMap:
        """This map with an importance for those of `weights` that it has none of: the mean of the others on every element.

        The mean is over those of `weights` that were recorded (over the whole map, if none was). What was added takes no
        memory of a weight's size.
        """
        new = [weight for weight in weights if weight.name not in self]
        if not new:
            return self
        recorded = [weight.name for weight in weights if weight.name in self] or list(self)
        mean = self.total(recorded) / sum(math.prod(self.stored(name).shape) for name in recorded)
        omega: dict[str, StoredOmega] = {weight.name: uniform(weight.shape, mean) for weight in new}
        zero = {
            weight.name: Reference(torch.zeros(0, weight.shape[1]), torch.zeros(weight.shape[0], 0), 1.0)
            for weight in new
        }
        return self._with(self._omega | omega, reference=self.reference | zero)

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
