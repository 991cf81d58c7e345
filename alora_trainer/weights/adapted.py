"""The one place that knows PEFT's LoRA layers: which weights are adapted, by which factors, and what is refused.

Every adapted weight is seen as a matrix ``W = W0 + scaling * B @ A`` of shape (out_features, in_features), whatever the
layer stores: a GPT-2 ``Conv1D`` keeps its transpose, an embedding is the linear map of a one-hot token, a convolution has
its kernel flattened into the input features. A stack of experts in one parameter (PEFT's `target_parameters`) is as many
weights, whose factors are slices of two common parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, cast

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora import layer as lora_layers
from torch import nn

from alora_trainer.errors import ALoRAError
from alora_trainer.weights.adapter_kinds import refuse_other_kinds
from alora_trainer.weights.parameterization import Parameterization
from alora_trainer.weights.reference import PEFT_PREFIX, Reference, Stack
from alora_trainer.weights.sharding import gathered
from alora_trainer.weights.steps import Factors, FactorStep, movement_factors
from alora_trainer.weights.trained_weight import Matrices, TrainedWeight, View, sampled, unwrapped, whole

# PEFT's modules of LoRA layers that our tests train. Others (GPTQ, AWQ, torchao, ...) have layers of their own.
_TESTED_KINDS = ("peft.tuners.lora.layer", "peft.tuners.lora.bnb")


@dataclass(frozen=True, eq=False)
class AdaptedWeight(TrainedWeight):
    """One weight matrix that a trainable LoRA adapter moves.

    Attributes:
        name: the module's name as the base model knows it (no PEFT prefix, no adapter name).
        layer: PEFT's layer, holding the frozen base layer and the factors.
        adapter: the adapter's name inside that layer.
        stack: which matrix of a stack of experts this is; None for a layer with a matrix of its own.
        sharded: (A, B) as FSDP2 has spread them over processes, which it takes out of the layer while this computes; None
            where they are not.
    """

    name: str
    layer: LoraLayer
    adapter: str
    stack: Stack | None = None
    sharded: tuple[nn.Parameter, nn.Parameter] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.is_sharded:
            object.__setattr__(self, "sharded", self.parameters)

    parameterization: ClassVar[Parameterization] = Parameterization.ADAPTER

    @property
    def parameters(self) -> tuple[nn.Parameter, nn.Parameter]:
        """(A, B) as PEFT stores them."""
        return self.parameter_a, self.parameter_b

    @property
    def parameter_a(self) -> nn.Parameter:
        """The trainable ``A`` as PEFT stores it."""
        if self.sharded is not None:
            return self.sharded[0]
        if self.adapter in self.layer.lora_embedding_A:
            return self.layer.lora_embedding_A[self.adapter]
        return cast(nn.Parameter, self.layer.lora_A[self.adapter].weight)

    @property
    def parameter_b(self) -> nn.Parameter:
        """The trainable ``B`` as PEFT stores it."""
        if self.sharded is not None:
            return self.sharded[1]
        if self.adapter in self.layer.lora_embedding_B:
            return self.layer.lora_embedding_B[self.adapter]
        return cast(nn.Parameter, self.layer.lora_B[self.adapter].weight)

    @property
    def a(self) -> torch.Tensor:
        """``A`` as a matrix (rank, in_features), detached, sharing memory with the parameter."""
        return self.of_a(whole(self.parameter_a.detach()))

    @property
    def b(self) -> torch.Tensor:
        """``B`` as a matrix (out_features, rank), detached, sharing memory with the parameter."""
        return self.of_b(whole(self.parameter_b.detach()))

    def of_a(self, tensor: torch.Tensor) -> torch.Tensor:
        """This weight's part (rank, in_features) of a tensor of `parameter_a`'s shape, sharing its memory."""
        return tensor.flatten(1) if self.stack is None else self.stack.of_a(tensor)

    def of_b(self, tensor: torch.Tensor) -> torch.Tensor:
        """This weight's part (out_features, rank) of a tensor of `parameter_b`'s shape, sharing its memory."""
        return tensor.flatten(1) if self.stack is None else self.stack.of_b(tensor)

    @property
    def shares_parameters(self) -> bool:
        return self.stack is not None

    @property
    def views(self) -> tuple[View, View]:
        return self.of_a, self.of_b

    @property
    def scaling(self) -> float:
        """The factor ``s`` of ``s * B @ A``: alpha / r, or alpha / sqrt(r) with rsLoRA."""
        return float(self.layer.scaling[self.adapter])

    @property
    def rank(self) -> int:
        # Of the parameter itself: to read one that is sharded takes all processes.
        rows = self.parameter_a.shape[0]
        return rows if self.stack is None else rows // self.stack.experts

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features) of the adapted weight."""
        rows, columns = self.parameter_b.shape[0], math.prod(self.parameter_a.shape[1:])
        return rows, columns

    def step(self, before: Matrices, gradients: Matrices, after: Matrices, learning_rate: float) -> FactorStep:
        (a, b), (gradient_a, gradient_b), (a_after, b_after) = before, gradients, after
        return FactorStep(a, b, gradient_a, gradient_b, a_after, b_after, self.scaling, learning_rate)

    def movement(self, before: Matrices, after: Matrices) -> Factors:
        (a, b), (a_after, b_after) = before, after
        return movement_factors(a, b, a_after, b_after, self.scaling)

    def reference(self) -> Reference:
        a, b = (matrix.cpu().clone() for matrix in self.matrices)
        return Reference(a, b, self.scaling, self.stack)

    @property
    def is_embedding(self) -> bool:
        """Whether the layer looks columns of the weight up by token, instead of multiplying by it."""
        return isinstance(self.layer, lora_layers.Embedding)

    def base_sample(self) -> list[float] | None:
        """A few elements of the frozen base weight, evenly spaced: tells one base model from another.

        Returns None where the base weight is not at hand as plain numbers (quantised, on the meta device). Of a weight that
        is spread over processes, all of them must call this together.
        """
        wraps = isinstance(self.layer, lora_layers.ParamWrapper)
        parameter = self.layer.get_param() if wraps else getattr(self.layer.get_base_layer(), "weight", None)
        if parameter is None or not parameter.is_floating_point() or parameter.is_meta:
            return None
        with gathered([parameter]):
            weight = whole(parameter.detach())
            if self.stack is not None and weight.ndim == 3:
                weight = weight[self.stack.expert]
            return weight.flatten()[sampled(weight.numel())].float().cpu().tolist() if weight.numel() else None

    def sample_of(self, a: torch.Tensor, b: torch.Tensor, scaling: float) -> list[float]:
        """The elements of ``scaling * b @ a`` (a (k, n), b (m, k)) that `base_sample` takes of the base weight."""
        rows, columns = self.shape
        places = torch.arange(rows * columns)[sampled(rows * columns)]
        if self.stored_transposed:
            row, column = places % rows, places // rows
        else:
            row, column = places // columns, places % columns
        return (scaling * (b.cpu().double()[row] * a.cpu().double()[:, column].T).sum(1)).tolist()

    @property
    def listed_in(self) -> str:
        """PEFT's setting that names it: where to leave it out."""
        return "target_modules" if self.stack is None else "target_parameters"

    @property
    def stored_transposed(self) -> bool:
        """Whether the base layer keeps the weight as (in_features, out_features): Conv1D, embeddings, some experts."""
        if isinstance(self.layer, lora_layers.ParamWrapper):
            return self.layer.get_param().ndim == 3 and not self.layer._did_swap_in_out_features
        return bool(getattr(self.layer, "fan_in_fan_out", False)) or self.is_embedding


def adapted_weights(model: nn.Module) -> list[AdaptedWeight]:
    """The weights of `model` that a trainable LoRA adapter moves, in the model's own order.

    Frozen adapters (DPO's reference adapter, say) are passed over.

    Raises:
        ALoRAError: there is no trainable LoRA adapter, or one of another kind; adapters are merged; the adapter is a variant
            whose movement is not ``scaling * B @ A`` (DoRA and others); two adapters train at once; two weights have their
            factors in common; a kind of layer is not supported.
    """
    refuse_other_kinds(model)
    weights = list(_trainable_weights(model))
    if not weights:
        raise ALoRAError(
            "the model has no trainable LoRA adapter: wrap it with peft.get_peft_model(model, LoraConfig(...)), load the "
            "adapter with is_trainable=True, or say full_parameters=True to tune the model's own weights"
        )
    adapters = sorted({weight.adapter for weight in weights})
    if len(adapters) > 1:
        raise ALoRAError(
            f"several LoRA adapters are trainable at once ({', '.join(adapters)}): activate one with model.set_adapter(name)"
        )
    _refuse_tied(weights)
    return weights


def _refuse_tied(weights: list[AdaptedWeight]) -> None:
    """Two weights with factors in common (PEFT's `ensure_weight_tying`) would each be charged for the other's movement."""
    owners: dict[int, AdaptedWeight] = {}
    for weight in weights:
        if weight.shares_parameters or weight.is_sharded or weight.parameter_a.is_meta:
            continue
        for parameter in weight.parameters:
            other = owners.setdefault(parameter.data_ptr(), weight)
            if other is not weight:
                raise ALoRAError(
                    f"{other.name} and {weight.name} have their LoRA factors in common, which is not supported: adapt one of "
                    "the two, or leave ensure_weight_tying out"
                )


def _trainable_weights(model: nn.Module) -> Iterator[AdaptedWeight]:
    for module_name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        for adapter in module.active_adapters:
            if adapter not in module.scaling:
                continue
            for weight in _weights_of(module_name, module, adapter):
                _refuse_unsupported(weight)
                if weight.trains:
                    yield weight


def base_name(name: str) -> str:
    """A module's or parameter's name as the base model knows it, without what PEFT, torch.compile and FSDP2's activation
    checkpointing put around it."""
    return unwrapped(name).removeprefix(PEFT_PREFIX).replace(".base_layer", "")


def _weights_of(module_name: str, layer: LoraLayer, adapter: str) -> Iterator[AdaptedWeight]:
    name = base_name(module_name)
    if not isinstance(layer, lora_layers.ParamWrapper):
        yield AdaptedWeight(name, layer, adapter)
        return
    name = f"{name}.{layer.parameter_name}"
    # Wrappers of several parameters of one module lie within each other, so the file's names have ".base_layer" in them.
    module = unwrapped(module_name).removeprefix(PEFT_PREFIX)
    for expert in range(layer.num_experts):
        stack = Stack(module, expert, int(layer.num_experts))
        yield AdaptedWeight(f"{name}.{expert}" if layer.get_param().ndim == 3 else name, layer, adapter, stack)


def _refuse_unsupported(weight: AdaptedWeight) -> None:
    layer = weight.layer
    if layer.merged:
        raise ALoRAError(
            f"the adapter of {weight.name} is merged into the base weight, so training would not move it: "
            "call model.unmerge_adapter() first"
        )
    variant = layer.lora_variant.get(weight.adapter)
    if variant is not None or layer.use_dora.get(weight.adapter, False):
        kind = type(variant).__name__.removesuffix("Variant") if variant is not None else "DoRA"
        raise ALoRAError(
            f"{weight.name} uses the LoRA variant {kind}, whose movement is not scaling * B @ A: use plain LoRA or rsLoRA "
            "(LoraConfig without use_dora and other variants)"
        )
    if isinstance(layer, lora_layers.MultiheadAttention):
        raise ALoRAError(
            f"{weight.name} is a {type(layer).__name__} LoRA layer, which is not supported: adapt linear, embedding or "
            "convolution layers by target_modules, or experts by target_parameters"
        )
    kind = type(layer).__module__
    if kind.startswith("peft.tuners.lora.") and kind not in _TESTED_KINDS:
        raise ALoRAError(
            f"{weight.name} is a {type(layer).__name__}, a kind of quantised or parallel layer that is not supported: load the "
            "base with bitsandbytes (4 or 8 bits), or unquantised"
        )
    if isinstance(layer, lora_layers._ConvNd) and layer.get_base_layer().groups != 1:
        raise ALoRAError(
            f"{weight.name} is a grouped convolution, which is not supported: leave it out of target_modules"
        )
