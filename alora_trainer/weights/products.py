"""What adapted weights are multiplied by while the model runs: of layers, and of experts that are in one parameter.

A layer says by itself what it is given and what it makes of it. Of a stack of experts in one parameter nothing is seen from
outside their module but all tokens together: which of them an expert is given, and what it makes of them, stands in the
products within. So these are watched, while the module computes its experts one by one (transformers' ``eager`` way).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
        self._stacks: dict[int, tuple[torch.Tensor, Mapping[int, AdaptedWeight]]] = {}
        # By id of a matrix: it (so that no other one gets this id) and its weight.
        self._matrices: dict[int, tuple[torch.Tensor, AdaptedWeight]] = {}
        self._multiplied: set[int] = set()
        self._parameters: dict[str, bool] = {}
        for name, own in _by_parameter(weights).items():
            parameter = getattr(module, name)  # PEFT has put the adapter's share in
            self._parameters[name] = False
            if parameter.ndim == 2:
                self._matrices[id(parameter)] = (parameter, own[0])
            else:
                self._stacks[id(parameter)] = (parameter, own)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name == "__getitem__" and id(args[0]) in self._stacks:
            self._take(args[0], args[1], output)
        elif len(args) > 1 and id(args[1]) in self._matrices and name in _LINEAR | _TRANSPOSED:
            weight = self._matrices[id(args[1])][1]
            if weight.stored_transposed != (name in _TRANSPOSED):
                raise ALoRAError(
                    f"{weight.name} is multiplied the other way round than PEFT adapts it: leave {self._of(weight)} out of "
                    "target_parameters"
                )
            self._multiplied.add(id(args[1]))
            self._parameters[self._of(weight)] = True
            self._see(weight, args[0], output)
        return output

    def _take(self, parameter: torch.Tensor, place: Any, matrix: Any) -> None:
        """Remember a matrix that was taken out of a stack."""
        one = isinstance(place, int) or (isinstance(place, torch.Tensor) and place.ndim == 0)
        weight = self._stacks[id(parameter)][1].get(int(place)) if one else None
        if weight is not None:
            self._matrices[id(matrix)] = (matrix, weight)

    def _of(self, weight: AdaptedWeight) -> str:
        return str(weight.layer.parameter_name)

    def check(self) -> None:
        """Raises ALoRAError if a parameter, or a matrix of a stack, was used otherwise than in products that were seen."""
        unseen = [name for name, seen in self._parameters.items() if not seen]
        unseen += [self._of(weight) for key, (_, weight) in self._matrices.items() if key not in self._multiplied]
        if unseen:
            name = next(weight.name for weight in self._all() if self._of(weight) == unseen[0])
            raise ALoRAError(
                f"what {name} is multiplied by cannot be seen: its module does not use {unseen[0]} as a linear layer, or does "
                "not compute its experts one by one. Leave it out of target_parameters"
            )

    def _all(self) -> list[AdaptedWeight]:
        stacked = [weight for _, own in self._stacks.values() for weight in own.values()]
        return stacked + [weight for _, weight in self._matrices.values()]


def _by_parameter(weights: Sequence[AdaptedWeight]) -> dict[str, dict[int, AdaptedWeight]]:
    """The weights of one module by their parameter and their place in its stack; 0 of a parameter that is a matrix."""
    found: dict[str, dict[int, AdaptedWeight]] = {}
    for weight in weights:
        assert weight.stack is not None
        found.setdefault(str(weight.layer.parameter_name), {})[weight.stack.expert] = weight
    return found
