"""What recorder and penalty need to know of a weight that training moves, whether through LoRA factors or as it is.

Both see a weight as a matrix (m, n) that is a function of a few parameters: ``W0 + s B A`` of B and A (`adapted`), or the
parameter itself (`full`).
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import nn

from alora_trainer.basics.processes import Processes
from alora_trainer.errors import ALoRAError
from alora_trainer.weights.parameterization import Parameterization
from alora_trainer.weights.reference import FullReference, Reference
from alora_trainer.weights.steps import Matrix, Step

Matrices = tuple[torch.Tensor, ...]
View = Callable[[torch.Tensor], torch.Tensor]

_BASE_SAMPLES = 16


class TrainedWeight(ABC):
    """One weight matrix that training moves.

    Attributes:
        name: as the base model knows it.
        parameterization: what its parameters are.
    """

    name: str
    parameterization: ClassVar[Parameterization]

    @property
    @abstractmethod
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """What the optimizer moves: (A, B) of an adapted weight, (W,) of a full one."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(m, n) of the weight as a matrix."""

    @abstractmethod
    def step(self, before: Matrices, gradients: Matrices, after: Matrices, learning_rate: float) -> Step:
        """One optimizer step, from the matrices before and after it and the data loss's gradients."""

    @abstractmethod
    def movement(self, before: Matrices, after: Matrices) -> Matrix:
        """The weight's movement between two states, as factors (adapted) or as the matrix itself (full)."""

    @abstractmethod
    def base_sample(self) -> list[float] | None:
        """A few elements of what does not depend on the training: tells one base model from another."""

    @abstractmethod
    def reference(self) -> Reference | FullReference:
        """Where the weight is now, as a theta*: copies in host memory, in the parameters' own dtype."""

    @property
    def matrices(self) -> Matrices:
        """The parameters as matrices, detached; they share memory with the parameters unless these are sharded."""
        return tuple(view(whole(p.detach())) for p, view in zip(self.parameters, self.views, strict=True))

    @property
    @abstractmethod
    def views(self) -> tuple[View, ...]:
        """For each of `parameters`: this weight's matrix in a tensor of the parameter's shape, sharing its memory."""

    @property
    def shares_parameters(self) -> bool:
        """Whether other weights are in the same parameters."""
        return False

    def put(self, matrices: Matrices) -> None:
        """Make the parameters what `matrices`, that all processes have, say. They must call it together."""
        for parameter, view, matrix in zip(self.parameters, self.views, matrices, strict=True):
            if not hasattr(parameter, "device_mesh"):
                target = view(parameter.detach())
                if target.data_ptr() != matrix.data_ptr():
                    target.copy_(matrix)
                continue
            # Of the experts of a stack, the others stay as they are.
            values = whole(parameter.detach()) if self.shares_parameters else matrix.new_empty(parameter.shape)
            view(values).copy_(matrix)
            here(parameter.detach()).copy_(here(placed(values, parameter)))

    def copy(self) -> Matrices:
        """The parameters as matrices of their own, in the dtype of the computation."""
        return tuple(matrix.to(self.dtype, copy=True) for matrix in self.matrices)

    def computed(self, matrices: Matrices) -> Matrices:
        """Matrices in the dtype of the computation, copied only where they are in another one."""
        return tuple(matrix.to(self.dtype) for matrix in matrices)

    def gradients(self, scale: float = 1.0) -> Matrices:
        """Copies of the accumulated gradients as matrices, divided by `scale`; zero for a parameter that is frozen."""
        return tuple(_gradient(p, view, self.dtype, scale) for p, view in zip(self.parameters, self.views, strict=True))

    @property
    def trains(self) -> bool:
        """Whether the training moves any of its parameters."""
        return any(parameter.requires_grad for parameter in self.parameters)

    @property
    def is_finite(self) -> bool:
        """Whether no element of the parameters is NaN or infinite; of sharded ones, of this process's pieces alone."""
        return all(bool(torch.isfinite(here(parameter.detach())).all()) for parameter in self.parameters)

    @property
    def is_sharded(self) -> bool:
        """Whether the parameters are spread over processes (FSDP2), so that reading them takes all of these."""
        return any(hasattr(parameter, "full_tensor") for parameter in self.parameters)

    @property
    def has_spread_gradients(self) -> bool:
        """Whether the gradients are spread over processes (FSDP2, DeepSpeed), so that reading them takes all of these."""
        return self.is_sharded or any(_is_of_deepspeed(parameter) for parameter in self.parameters)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that importance and penalty are computed in: float32, or float64 for a float64 parameter."""
        return torch.float64 if self.parameters[-1].dtype == torch.float64 else torch.float32

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return self.parameters[-1].device


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor that FSDP2 has spread over processes (all of them must call this); any other as it is."""
    full = getattr(tensor, "full_tensor", None)
    return full() if full is not None else tensor


def _is_of_deepspeed(parameter: nn.Parameter) -> bool:
    """Whether DeepSpeed trains it: in pieces (ZeRO-3), or by a copy of its own."""
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


def _accumulated(parameter: nn.Parameter) -> torch.Tensor | None:
    """The whole gradient of a parameter, which DeepSpeed keeps elsewhere; None where there is none."""
    if parameter.grad is not None:
        return whole(parameter.grad.detach())
    if not _is_of_deepspeed(parameter):
        return None
    from deepspeed.utils import safe_get_full_grad

    found: torch.Tensor | None = safe_get_full_grad(parameter)
    return found


def here(tensor: torch.Tensor) -> torch.Tensor:
    """This process's piece of a tensor that FSDP2 has spread over processes; any other as it is. Memory is shared."""
    local = getattr(tensor, "to_local", None)
    return local() if local is not None else tensor


def placed(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A tensor that every process has whole, spread over them as FSDP2 has spread `like`; no process sends anything.

    Args:
        tensor: of the shape of `like`.
        like: a parameter; an ordinary one leaves `tensor` as it is.
    """
    mesh, placements = getattr(like, "device_mesh", None), getattr(like, "placements", None)
    if mesh is None:
        return tensor
    from torch.distributed.tensor import DTensor, Replicate

    everywhere = DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return everywhere.redistribute(mesh, placements)


def _gradient(parameter: nn.Parameter, view: View, dtype: torch.dtype, scale: float) -> torch.Tensor:
    gradient = _accumulated(parameter)
    if gradient is None:
        # A tensor of the parameter's shape that takes no memory.
        shape_of = torch.empty((), dtype=dtype, device=parameter.device).expand(parameter.shape)
        return torch.zeros_like(view(shape_of), memory_format=torch.contiguous_format)
    return view(gradient).to(dtype, copy=True).div_(scale)


# What stands in the names of modules that torch.compile or activation checkpointing (FSDP2's) has wrapped.
_WRAPPERS = re.compile(r"(^|\.)(_orig_mod|_checkpoint_wrapped_module)(?=\.|$)")


def unwrapped(name: str) -> str:
    """A module's or parameter's name without the names of wrappers."""
    return _WRAPPERS.sub("", name).removeprefix(".")


def sampled(elements: int) -> slice:
    """Which elements of a flattened weight `TrainedWeight.base_sample` takes: a few, evenly spaced."""
    step = max(elements // _BASE_SAMPLES, 1)
    return slice(0, step * min(_BASE_SAMPLES, elements), step)


def learning_rate_of(weight: TrainedWeight, rates: Mapping[int, float]) -> float:
    """The one learning rate of a weight's parameters.

    Args:
        rates: the optimizer's, by ``id(parameter)``.

    Raises:
        ALoRAError: its parameters learn at different rates, or the optimizer does not hold them.
    """
    found = {rates[id(p)] for p in weight.parameters if id(p) in rates}
    if len(found) > 1:
        raise ALoRAError(
            f"A and B of {weight.name} have different learning rates ({', '.join(map(str, sorted(found)))}), and the "
            "paper's equations know only one: put both into one parameter group, or use record='exact'"
        )
    if not found:
        raise ALoRAError(
            f"the optimizer does not hold the weight {weight.name}: build it from the model's trainable parameters"
        )
    return found.pop()


def unprotected_parameters(model: nn.Module, weights: Sequence[TrainedWeight]) -> list[str]:
    """Names of trainable parameters that belong to none of `weights` (modules_to_save, biases): nothing holds these."""
    held = {id(p) for weight in weights for p in weight.parameters}
    return [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in held]


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[int, float]:
    """The learning rate of every parameter of `optimizer`, by ``id(parameter)``."""
    return {id(parameter): float(group["lr"]) for group in optimizer.param_groups for parameter in group["params"]}


def check_optimized(weights: Sequence[TrainedWeight], optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer that would move none of the weights.

    Raises:
        ALoRAError: it holds none of their parameters.
    """
    moved = learning_rates(optimizer)
    if not any(id(p) in moved for weight in weights for p in weight.parameters if p.requires_grad):
        raise ALoRAError(
            f"the optimizer holds none of the weights that train ({weights[0].name} and so on), so that nothing would move: "
            "build it from the trainable parameters of the model as it is trained, or leave it to the trainer"
        )


def first_weight_not_finite(weights: Sequence[TrainedWeight]) -> str | None:
    """The first of the weights with NaN or infinity; None if the trouble is elsewhere. All processes must call it together."""
    place = next((place for place, weight in enumerate(weights) if not weight.is_finite), None)
    if any(weight.is_sharded for weight in weights):
        place = Processes().first(place, weights[0].device)
    return None if place is None else weights[place].name


def first_not_finite(tensors: Mapping[str, Sequence[torch.Tensor]]) -> str | None:
    """The first name with NaN or infinity among its tensors; None if the trouble is elsewhere."""
    for name, of_name in tensors.items():
        if not all(bool(torch.isfinite(tensor).all()) for tensor in of_name):
            return name
    return None
