"""`ImportanceValues`: how much every element of the adapted weights mattered, with the weights theta* it was measured at."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from alora_trainer.basics.processes import Processes, together
from alora_trainer.errors import ALoRAError
from alora_trainer.importance.kinds.checks import checked_measure, converted
from alora_trainer.importance.kinds.elementwise import ELEMENTWISE
from alora_trainer.importance.kinds.elsewhere import Elsewhere
from alora_trainer.importance.kinds.formats import KINDS, storage_format, store
from alora_trainer.importance.kinds.in_basis import InBasis
from alora_trainer.importance.kinds.kind import Importance
from alora_trainer.importance.kinds.sharing import SharedParts, identities, total_bytes
from alora_trainer.importance.origin import ImportanceInfo, Origin
from alora_trainer.importance.selection import Layers, select_weights
from alora_trainer.weights.parameterization import Parameterization
from alora_trainer.weights.theta import AdapterTheta, BaseTheta, Theta
from alora_trainer.weights.trained_weight import TrainedWeight

if TYPE_CHECKING:
    from typing_extensions import Self

Later = TypeVar("Later", bound="ImportanceValues")


class ImportanceValues(Mapping[str, torch.Tensor]):
    """The importance of every trained weight by module name, with theta* and its provenance.

    Indexing gives how much each element matters by itself, (out_features, in_features): of element-wise importance the literal
    Omega of arXiv 2501.13669 eq. 15, never a normalised one. ``later.after(earlier)``, or ``earlier + later``, adds the
    importance of two tasks up, learned one after the other. Two are equal that have the same importance, in the same kind and
    format, and the same theta*, bit by bit, wherever they come from.

    Args:
        omega: by module name (as the base model knows it), all of one kind; a plain tensor is element-wise importance,
            non-negative, (out_features, in_features), and kept as exactly as its dtype is.
        theta: theta* of the same weights.
        base_samples: a few base weights by name (`TrainedWeight.base_sample`), to tell one base model from another.
        info: provenance.
        origin: the Hub repository that the map was fetched from, if it was.

    Raises:
        ALoRAError: an Omega is negative, not finite, absurdly large, or does not fit its reference.
    """

    def __init__(
        self,
        omega: Mapping[str, torch.Tensor | Importance],
        theta: Theta,
        *,
        base_samples: Mapping[str, list[float] | None] | None = None,
        info: ImportanceInfo | None = None,
        origin: Origin | None = None,
    ) -> None:
        self._omega = {name: o if isinstance(o, Importance) else store(o) for name, o in omega.items()}
        self.theta = theta
        self.base_samples = dict(base_samples or {})
        self.info = info or ImportanceInfo()
        self.origin = origin
        self._norms: dict[str, float] = {}
        self._traces: dict[str, float] = {}
        for name in self._omega:
            self._measure(name)

    def _measure(self, name: str) -> None:
        omega, reference = self._omega[name], self.theta.get(name)
        if reference is None:
            raise ALoRAError(f"the importance map has no reference weights for {name}: record it again")
        if omega.shape != reference.shape:
            raise ALoRAError(f"importance and reference of {name} differ in shape: the map is damaged, record it again")
        measure = checked_measure(name, omega)
        self._norms[name], self._traces[name] = measure.norm, measure.trace

    @property
    def reference(self) -> Mapping[str, Any]:
        """theta* of every weight by name: a `Reference` where an adapter was trained, a `FullReference` without one."""
        return self.theta

    @property
    def adapter_state(self) -> Mapping[str, torch.Tensor]:
        """theta* as PEFT's own state dict (``get_peft_model_state_dict``); empty where there is no adapter."""
        return self.theta.state if isinstance(self.theta, AdapterTheta) else {}

    @property
    def adapter_config(self) -> Any:
        """PEFT's configuration of theta*; None where there is no adapter."""
        return self.theta.config if isinstance(self.theta, AdapterTheta) else None

    @property
    def at_base(self) -> bool:
        """Whether theta* is the base weights: no adapter belongs to the map, and it holds any that starts there."""
        return isinstance(self.theta, BaseTheta)

    @property
    def parameterization(self) -> Parameterization:
        """What was trained while importance was recorded: an adapter (or, `at_base`, nothing), or the weights themselves."""
        return self.theta.parameterization

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.stored(name).diagonal()

    def stored(self, name: str) -> Importance:
        """The importance of one weight, as it is kept."""
        try:
            return self._omega[name]
        except KeyError:
            raise KeyError(f"no importance of {name!r}; this map has {', '.join(list(self._omega)[:4])}, ...") from None

    @property
    def storage(self) -> str:
        """The name of the storage format."""
        return next(iter(self._omega.values())).format if self._omega else "float32"

    @property
    def kind(self) -> str:
        """The name of the kind of importance."""
        return next(iter(self._omega.values())).kind if self._omega else ELEMENTWISE

    @property
    def layer_weights(self) -> str:
        """The setting of w_l that is meant for this kind of importance where none is given: "l2" or "none"."""
        return next(iter(self._omega.values())).layer_weights if self._omega else "l2"

    @property
    def lam(self) -> float:
        """The strength lambda that is meant for this kind of importance where neither one nor a budget is given."""
        return next(iter(self._omega.values())).lam if self._omega else 0.01

    @property
    def nbytes(self) -> int:
        """Bytes that Omega takes in memory (and, of a whole map, on disk), what weights have in common counted once."""
        return total_bytes(self._omega.values())

    @property
    def is_whole(self) -> bool:
        """Whether all of it is here, and nothing left to other processes (`artefact.reading.load_share`)."""
        return not any(isinstance(omega, Elsewhere) for omega in self._omega.values())

    def owners(self, names: Sequence[str]) -> dict[str, int]:
        """The process that holds each weight of `names`; all processes ask together.

        One that a single process has the importance of is that one's; those that all have are shared out by size.
        """
        processes = Processes()
        sizes = {name: math.prod(self.stored(name).shape) for name in names}
        if processes.count == 1:
            return processes.owners(sizes)
        here = [name for name in names if not isinstance(self.stored(name), Elsewhere)]
        having = together({processes.rank: here})
        everywhere = set(names).intersection(*having.values())
        owners = {name: rank for rank, found in having.items() for name in found if name not in everywhere}
        return owners | processes.owners({name: size for name, size in sizes.items() if name in everywhere})

    def convert(self, storage: str) -> Self:
        """The same map in another storage format.

        Args:
            storage: a name in `FORMATS`, such as "log8".

        Raises:
            ALoRAError: there is no such format, it keeps importance of another kind, or the values are out of its range.
        """
        if storage == self.storage:
            return self
        format = storage_format(storage)
        shared = SharedParts()
        omega = {
            name: shared.joined(converted(name, stored, format), identities(stored))
            for name, stored in self._omega.items()
        }
        return self.with_omega(omega, origin=self.origin)

    def select(self, layers: Layers) -> Self:
        """The map of some weights alone, with a theta* of these alone.

        Args:
            layers: numbers of transformer blocks, and names or patterns ("*.q_proj") of weights.

        Raises:
            ALoRAError: one of `layers` means no weight of this map.
        """
        names = select_weights(self, layers)
        return self.with_omega(
            {name: self.stored(name) for name in names},
            theta=self.theta.restricted(names),
            base_samples={name: self.base_samples.get(name) for name in names},
        )

    def with_info(self, **changes: Any) -> Self:
        """The same map with other facts in its `info`, such as ``data`` or ``license``."""
        changed = copy.copy(self)  # and not `with_omega`, which would look at every element again
        changed.info = replace(self.info, **changes)
        return changed

    def with_omega(self, omega: Mapping[str, torch.Tensor | Importance], **changes: Any) -> Self:
        """The same with another Omega, and with `changes` of what else the map was made of; its origin is not kept."""
        kept: dict[str, Any] = {
            "theta": self.theta,
            "base_samples": self.base_samples,
            "info": self.info,
        }
        return type(self)(omega, **(kept | changes))

    def __contains__(self, name: object) -> bool:
        return name in self._omega  # `Mapping` would ask for the value, a matrix of the weight's size

    def __iter__(self) -> Iterator[str]:
        return iter(self._omega)

    def __len__(self) -> int:
        return len(self._omega)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ImportanceValues):
            return NotImplemented
        return (
            self.keys() == other.keys()
            and all(omega.equals(other.stored(name)) for name, omega in self._omega.items())
            and self.theta == other.theta
        )

    __hash__ = None  # type: ignore[assignment]  # equal by value, and its tensors have no hash by value

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
        """The mean of Omega over all elements of all weights: the trace of all metrics by their number of rows."""
        return self.total(list(self)) / self.elements

    def total(self, names: Sequence[str]) -> float:
        """The sum of Omega over all elements of the weights in `names`: the trace of their metrics."""
        return sum(self._traces[name] for name in names)

    @property
    def kept_trace(self) -> dict[str, float]:
        """Of importance in a basis, the share of the whole trace in kept directions, by side; no side without directions."""
        stored = [omega for omega in self._omega.values() if isinstance(omega, InBasis)]
        whole = sum(self._traces.values())
        if not stored or whole == 0:
            return {}
        shares = [sum(side) / whole for side in zip(*(omega.kept_trace() for omega in stored), strict=True)]
        return {name: min(share, 1.0) for name, share in zip(("outputs", "inputs"), shares, strict=True) if share > 0}

    def after(self, earlier: ImportanceValues) -> Self:
        """The importance of both tasks, at this task's theta*, where this one was learned after `earlier`.

        Args:
            earlier: has no weight that this one has not; its theta* is given up.

        Raises:
            ALoRAError: a weight of `earlier` is missing from this one, or has another shape or kind of importance.
        """
        for name, omega in earlier._omega.items():
            if name not in self or self.stored(name).shape != omega.shape:
                raise ALoRAError(f"the maps do not fit: {name} {omega.shape} is not in the later one with this shape")
            if self.stored(name).kind != omega.kind:
                raise ALoRAError(
                    f"the maps do not fit: the importance of {name} is {omega.kind} in the earlier one and "
                    f"{self.stored(name).kind} in the later one: record both alike"
                )
        both = {
            name: omega.add(earlier.stored(name)) if name in earlier else omega for name, omega in self._omega.items()
        }
        own = {k: v for k, v in vars(earlier.info).items() if k not in ("earlier_tasks", "base_model", "base_revision")}
        tasks = (*earlier.info.earlier_tasks, own, *self.info.earlier_tasks)
        return self.with_omega(both, info=replace(self.info, earlier_tasks=tasks))

    def __add__(self, later: Later) -> Later:
        """``later.after(self)``: the importance of both tasks, at the right one's theta*. Raises as `after`."""
        if not isinstance(later, ImportanceValues):
            return NotImplemented
        return later.after(self)

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
        kind = KINDS.find(self.kind)
        uniform = {weight.name: kind.uniform(weight.shape, mean) for weight in new}
        theta = self.theta.with_unmoved({weight.name: weight.shape for weight in new})
        return self.with_omega(self._omega | uniform, theta=theta)
