"""`ImportanceValues`: how much every element of the adapted weights mattered, with the weights theta* it was measured at."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.kinds.elementwise import LARGEST_NORM
from alora_trainer.importance.kinds.factored import uniform
from alora_trainer.importance.kinds.formats import store
from alora_trainer.importance.kinds.kind import Importance
from alora_trainer.importance.origin import ImportanceInfo, Origin
from alora_trainer.importance.selection import Layers, select_weights
from alora_trainer.weights.reference import FullReference, Reference
from alora_trainer.weights.trained_weight import TrainedWeight

if TYPE_CHECKING:
    from typing_extensions import Self

Later = TypeVar("Later", bound="ImportanceValues")


class ImportanceValues(Mapping[str, torch.Tensor]):
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
        omega: Mapping[str, torch.Tensor | Importance],
        reference: Mapping[str, Reference | FullReference],
        *,
        adapter_state: Mapping[str, torch.Tensor],
        adapter_config: Any,
        base_samples: Mapping[str, list[float] | None] | None = None,
        info: ImportanceInfo | None = None,
        origin: Origin | None = None,
    ) -> None:
        self._omega = {name: o if isinstance(o, Importance) else store(o) for name, o in omega.items()}
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

    def stored(self, name: str) -> Importance:
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

    def convert(self, storage: str) -> Self:
        """The same map in another storage format ("float32", "bfloat16", "log8", "factored"); see `importance.storage`.

        Raises:
            ALoRAError: there is no such format.
        """
        if storage == self.storage:
            return self
        return self.with_omega({name: store(self[name], storage) for name in self}, origin=self.origin)

    def select(self, layers: Layers) -> Self:
        """The map of some weights alone, with a theta* of these alone.

        Args:
            layers: numbers of transformer blocks, and names or patterns ("*.q_proj") of weights.

        Raises:
            ALoRAError: one of `layers` means no weight of this map.
        """
        from alora_trainer.weights.reference import restricted

        names = select_weights(self, layers)
        state, config = self.adapter_state, self.adapter_config
        if not self.is_full:
            state, config = restricted(state, config, names)
        return self.with_omega(
            {name: self.stored(name) for name in names},
            reference={name: self.reference[name] for name in names},
            base_samples={name: self.base_samples.get(name) for name in names},
            adapter_state=state,
            adapter_config=config,
        )

    def with_info(self, **changes: Any) -> Self:
        """The same map with other facts in its `info`, such as ``data`` or ``license``."""
        changed = copy.copy(self)  # and not `with_omega`, which would look at every element again
        changed.info = replace(self.info, **changes)
        return changed

    def with_omega(self, omega: Mapping[str, torch.Tensor | Importance], **changes: Any) -> Self:
        """The same with another Omega, and with `changes` of what else the map was made of; its origin is not kept."""
        kept = {
            "adapter_state": self.adapter_state,
            "adapter_config": self.adapter_config,
            "base_samples": self.base_samples,
            "info": self.info,
            "reference": self.reference,
        }
        return type(self)(omega, **(kept | changes))

    def __iter__(self) -> Iterator[str]:
        return iter(self._omega)

    def __len__(self) -> int:
        return len(self._omega)

    def __repr__(self) -> str:
        return f"ImportanceValues({len(self)} weights, {self.elements:,} elements, {self.storage}, {self.info.estimator!r})"

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

    def __add__(self, later: Later) -> Later:
        """Importance of both tasks, at the later task's theta*.

        Raises:
            ALoRAError: a weight of this map is missing from the later one, or has another shape.
        """
        if not isinstance(later, ImportanceValues):
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
        return later.with_omega(total, info=replace(later.info, earlier_tasks=earlier))

    def with_uniform(self, weights: Sequence[TrainedWeight]) -> Self:
        """This map with an importance for those of `weights` that it has none of: the mean of the others on every element.

        The mean is over those of `weights` that were recorded (over the whole map, if none was). What was added takes no
        memory of a weight's size.
        """
        new = [weight for weight in weights if weight.name not in self]
        if not new:
            return self
        recorded = [weight.name for weight in weights if weight.name in self] or list(self)
        mean = self.total(recorded) / sum(math.prod(self.stored(name).shape) for name in recorded)
        omega: dict[str, Importance] = {weight.name: uniform(weight.shape, mean) for weight in new}
        zero = {
            weight.name: Reference(torch.zeros(0, weight.shape[1]), torch.zeros(weight.shape[0], 0), 1.0)
            for weight in new
        }
        return self.with_omega(self._omega | omega, reference=self.reference | zero)
