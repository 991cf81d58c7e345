"""What adapted weights are multiplied by while the model runs: of layers, and of experts that are in one parameter.

A layer says by itself what it is given and what it makes of it. Of a stack of experts in one parameter nothing is seen from
outside their module but all tokens together: which of them an expert is given, and what it makes of them, stands in the
products within. So these are watched, while the module computes its experts one by one (transformers' ``eager`` way).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import layer as lora_layers
from torch.overrides import TorchFunctionMode

from alora_trainer.errors import ALoRAError
from alora_trainer.weights.adapted import AdaptedWeight

# Weight, its inputs (..., n), and what it makes of them (..., m), as they stand in the graph.
See = Callable[[AdaptedWeight, torch.Tensor, Any], None]

# PyTorch's functions by name: x W', and x W of a matrix that is stored the other way round.
_LINEAR, _TRANSPOSED = {"linear"}, {"matmul", "mm", "__matmul__"}


class Products:
    """Calls ``see(weight, inputs, outputs)`` for every use of an adapted weight in a forward pass, until `close`.

    Args:
        weights: the adapted weights that are watched.
        see: what to do with inputs and outputs.

    Raises:
        ALoRAError: in the forward pass: experts in one parameter are used otherwise than one by one, as ``x W'`` or ``x W``.
    """

    def __init__(self, weights: Sequence[AdaptedWeight], see: See) -> None:
        self._handles: list[Any] = []
        self._ways: list[tuple[Any, Any]] = []
        within: dict[int, list[AdaptedWeight]] = {}
        for weight in weights:
            if isinstance(weight.layer, lora_layers.ParamWrapper):
                within.setdefault(id(weight.layer.get_base_layer()), []).append(weight)
            else:
                self._handles.append(weight.layer.register_forward_hook(_of_layer(weight, see)))
        for own in within.values():
            self._watch_within(own[0].layer.get_base_layer(), own, see)

    def _watch_within(self, module: torch.nn.Module, weights: Sequence[AdaptedWeight], see: See) -> None:
        config = getattr(module, "config", None)
        way = getattr(config, "_experts_implementation", None)
        if way not in (None, "eager"):
            self._ways.append((config, way))
            config._experts_implementation = "eager"  # type: ignore[union-attr]
        open_modes: list[_ProductsWithin] = []

        def begin(module: torch.nn.Module, inputs: Any) -> None:
            open_modes.append(_ProductsWithin(module, weights, see))
            open_modes[-1].__enter__()

        def end(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            mode = open_modes.pop()
            mode.__exit__(None, None, None)
            if output is not None:  # None: the module raised an error
                mode.check()

        self._handles.append(module.register_forward_pre_hook(begin))
        self._handles.append(module.register_forward_hook(end, always_call=True))

    def close(self) -> None:
        """Take the hooks off the model, and let it compute experts as it did."""
        for handle in self._handles:
            handle.remove()
        for config, way in reversed(self._ways):
            config._experts_implementation = way


def _of_layer(weight: AdaptedWeight, see: See) -> Any:
    return lambda module, inputs, output: see(weight, inputs[0], output)


class _ProductsWithin(TorchFunctionMode):
    """The products with parameters of one module, in one of its forward passes.

    Args:
        module: whose forward pass begins.
        weights: in its parameters, one or a stack in each.
        see: as of `Products`.
    """

    def __init__(self, module: torch.nn.Module, weights: Sequence[AdaptedWeight], see: See) -> None:
        super().__init__()
        self._see = see
        self._stacks: dict[int, _Stack] = {}
        self._matrices: dict[int, _Matrix] = {}
        for own in _by_parameter(weights).values():
            first = next(iter(own.values()))
            parameter = getattr(module, str(first.layer.parameter_name))  # PEFT has put the adapter's share in
            stack = _Stack(parameter, own, first)
            self._stacks[id(parameter)] = stack
            if parameter.ndim == 2:
                self._matrices[id(parameter)] = _Matrix(parameter, stack, first)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name == "__getitem__" and id(args[0]) in self._stacks:
            self._take(self._stacks[id(args[0])], args[1], output)
        elif len(args) > 1 and id(args[1]) in self._matrices and name in _LINEAR | _TRANSPOSED:
            self._multiply(self._matrices[id(args[1])], args[0], output, transposed=name in _TRANSPOSED)
        return output

    def _take(self, stack: _Stack, place: Any, matrix: Any) -> None:
        """Remember a matrix that was taken out of a stack, also one that is not watched."""
        if isinstance(place, int) or (isinstance(place, torch.Tensor) and place.ndim == 0):
            self._matrices[id(matrix)] = _Matrix(matrix, stack, stack.weights.get(int(place)))

    def _multiply(self, matrix: _Matrix, inputs: torch.Tensor, output: Any, *, transposed: bool) -> None:
        first = matrix.stack.first
        if first.stored_transposed != transposed:
            raise ALoRAError(
                f"{first.name} is multiplied the other way round than PEFT adapts it: leave {first.layer.parameter_name} out "
                "of target_parameters"
            )
        matrix.multiplied = matrix.stack.used = True
        if matrix.weight is not None:
            self._see(matrix.weight, inputs, output)

    def check(self) -> None:
        """Raises ALoRAError if a parameter, or a matrix of a stack, was used otherwise than in products that were seen."""
        unseen = [stack.first for stack in self._stacks.values() if not stack.used]
        unseen += [one.weight for one in self._matrices.values() if one.weight is not None and not one.multiplied]
        if unseen:
            raise ALoRAError(
                f"what {unseen[0].name} is multiplied by cannot be seen: its module does not use "
                f"{unseen[0].layer.parameter_name} as a linear layer, or does not compute its experts one by one. Leave it out "
                "of target_parameters"
            )


@dataclass
class _Stack:
    """A parameter, those of its matrices that are watched, by their place, and the first of these."""

    parameter: torch.Tensor
    weights: Mapping[int, AdaptedWeight]
    first: AdaptedWeight
    used: bool = False


@dataclass
class _Matrix:
    """A matrix of a parameter, kept so that no other tensor gets its id; its weight, if it is watched."""

    matrix: torch.Tensor
    stack: _Stack
    weight: AdaptedWeight | None
    multiplied: bool = False


def _by_parameter(weights: Sequence[AdaptedWeight]) -> dict[str, dict[int, AdaptedWeight]]:
    """The weights of one module by their parameter and their place in its stack; 0 of a parameter that is a matrix."""
    found: dict[str, dict[int, AdaptedWeight]] = {}
    for weight in weights:
        assert weight.stack is not None
        found.setdefault(str(weight.layer.parameter_name), {})[weight.stack.expert] = weight
    return found
