"""What stands before each layer's penalty: its weight w_l (arXiv 2501.13669 eq. 17), and the normalisation of Omega and w_l."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.importance_values import ImportanceValues


def layer_coefficients(
    importance: ImportanceValues, names: Sequence[str], *, layer_weights: str | Mapping[str, float], normalize: bool
) -> dict[str, float]:
    """What stands before each layer's literal ``sum Omega D**2``: w_l, and the normalisation of Omega and of w_l.

    Means are taken over the weights in `names`, those that the penalty holds.

    Args:
        importance: has all of `names`.
        names: of the held weights.
        layer_weights: "l2", "none", or weights by name or pattern (see `given_layer_weights`).
        normalize: divide Omega by its mean and w_l by its mean over layers.

    Raises:
        ALoRAError: these weights' importance, or every w_l, is zero, so that nothing would be held; a pattern fits no weight,
            or a weight no pattern.
    """
    if isinstance(layer_weights, Mapping):
        weights = given_layer_weights(layer_weights, names)
    else:
        weights = {name: importance.layer_norms[name] if layer_weights == "l2" else 1.0 for name in names}
    elements = sum(math.prod(importance.stored(name).shape) for name in names)
    mean = importance.total(names) / elements
    mean_weight = sum(weights.values()) / len(weights)
    if mean == 0:
        raise ALoRAError("the importance map is zero throughout, so it can hold nothing: record it for more steps")
    if not any(weight > 0 and importance.total([name]) > 0 for name, weight in weights.items()):
        raise ALoRAError(
            "every layer weight is zero where there is importance, so nothing would be held: give one of them a weight, or use "
            "lam=0"
        )
    if not normalize:
        return weights
    return {name: weight / mean_weight / mean for name, weight in weights.items()}


def given_layer_weights(given: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """w_l of every weight in `names` from a mapping of names or patterns to weights.

    A key fits a weight as in PEFT's ``rank_pattern``: it is a regular expression for the name, or for the end of it after a
    dot. The first key that fits counts.

    Raises:
        ALoRAError: a key is no regular expression or fits nothing; a weight is fitted by no key.
    """
    patterns = {}
    for key in given:
        try:
            patterns[key] = re.compile(rf"(.*\.)?({key})")
        except re.error as error:
            raise ALoRAError(f"layer_weights: {key!r} is no regular expression ({error})") from error
        if not any(patterns[key].fullmatch(name) for name in names):
            raise ALoRAError(f"layer_weights: {key!r} fits none of the held weights, such as {names[0]}: correct it")
    found = {}
    for name in names:
        fitting = [key for key, pattern in patterns.items() if pattern.fullmatch(name)]
        if not fitting:
            raise ALoRAError(f"layer_weights gives {name} no weight: add a key for it ('.*' fits all that is left)")
        found[name] = float(given[fitting[0]])
    return found
