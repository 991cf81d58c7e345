"""Squared gradients of sequences in two bases: what EK-FAC's Omega is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.recording.layer_moments import check_layers, embedding_scale, with_float64
from alora_trainer.weights.adapted import AdaptedWeight
from alora_trainer.weights.layer_hooks import LayerHooks


@dataclass(frozen=True)
class Bases:
    """What a first pass has found, and squares are summed up in.

    Attributes:
        outputs: U (m, k) by weight name, in host memory.
        inputs: V (n, h) by leader: the weights that share an input share it.
        leaders: by weight name.
        tokens, batches: that went into them, over all processes.
    """

    outputs: dict[str, torch.Tensor]
    inputs: dict[str, torch.Tensor]
    leaders: dict[str, str]
    tokens: int
    batches: int

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """As tensors and as plain values, for a checkpoint."""
        tensors = {f"outputs.{name}": u for name, u in self.outputs.items()}
        tensors |= {f"inputs.{name}": v for name, v in self.inputs.items()}
        return tensors, {"leaders": self.leaders, "tokens": self.tokens, "batches": self.batches}

    @classmethod
    def of_state(cls, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> Bases:
        """From what `state` gave."""
        outputs, inputs = _of_side(tensors, "outputs"), _of_side(tensors, "inputs")
        return cls(outputs, inputs, facts["leaders"], facts["tokens"], facts["batches"])


def _of_side(tensors: Mapping[str, torch.Tensor], side: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(f"{side}."): tensor for key, tensor in tensors.items() if key.startswith(f"{side}.")}


class RotatedSquares:
    """Sums over sequences of the squared gradients ``(U' (sum_tokens g x') V)**2``, the rest of either basis as one number.

    Args:
        weights: those that are meant; of linear layers and embeddings.
        bases: U and V of each.
        draws: backward passes for each forward pass.

    Attributes:
        sums: (k + 1, h + 1) by weight name, in float64.
    """

    def __init__(self, weights: Sequence[AdaptedWeight], bases: Bases, draws: int) -> None:
        check_layers(weights)
        self._weights = weights
        self._found = bases
        by_leader = {w.name: bases.inputs[w.name].to(w.device, w.dtype) for w in weights if w.name in bases.inputs}
        self._bases = {
            w.name: (bases.outputs[w.name].to(w.device, w.dtype), by_leader[bases.leaders[w.name]].to(w.device))
            for w in weights
        }
        self._draws = draws
        self._shape = (0, 0)
        self._uses: Counter[str] = Counter()
        self.sums = {
            name: torch.zeros(u.shape[1] + 1, v.shape[1] + 1, dtype=torch.float64, device=with_float64(u.device))
            for name, (u, v) in self._bases.items()
        }

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Sum up what passes through the layers within the block."""
        hooks = LayerHooks(self._weights, self._add)
        try:
            yield
        finally:
            hooks.close()

    def begin(self, mask: torch.Tensor) -> None:
        """Say how many sequences and tokens (B, T) the forward pass to come has."""
        self._shape = (mask.shape[0], mask.shape[1])
        self._uses.clear()

    def end_forward(self) -> None:
        """Nothing: all is seen on the way back."""

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """All that its going on needs: the bases, and the sums so far."""
        tensors, facts = self._found.state()
        return tensors | {f"sums.{name}": total for name, total in self.sums.items()}, facts

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on from a `state` in the same bases."""
        sums = _of_side(tensors, "sums")
        self.sums = {name: sums[name].to(total.device) for name, total in self.sums.items()}

    def omega(self, name: str, tokens: int) -> torch.Tensor:
        """Omega (k + 1, h + 1) in float64: means a token, and over what is not kept."""
        (u, v), total = self._bases[name], self.sums[name] / tokens
        k, h = u.shape[1], v.shape[1]
        total[k] /= max(u.shape[0] - k, 1)
        total[:, h] /= max(v.shape[0] - h, 1)
        return total.clamp_min(0)

    def _add(self, weight: AdaptedWeight, features: torch.Tensor, gradient: torch.Tensor) -> None:
        self._check(weight, gradient)
        (u, v), total = self._bases[weight.name], self.sums[weight.name]
        whole_u, whole_v = u.shape[0] == u.shape[1], v.shape[0] == v.shape[1]
        for x, g in zip(features, gradient.detach().to(weight.dtype), strict=True):
            p, q = g @ u, self._rotated(weight, x)
            kept = (p.T @ q).to(total).square()
            # |U_i' M|**2, |M V_j|**2 and |M|**2 of M = sum g x', from the products of tokens with each other.
            rows, columns = kept.sum(1), kept.sum(0)
            if not whole_v:
                of_inputs, wide = self._products(weight, x), p.to(total)
                rows = ((of_inputs @ wide) * wide).sum(0)
            if not whole_u:
                of_outputs, wide = (g @ g.T).to(total), q.to(total)
                columns = ((of_outputs @ wide) * wide).sum(0)
            if whole_u:
                everything = rows.sum()
            elif whole_v:
                everything = columns.sum()
            else:
                everything = (of_inputs * of_outputs).sum()
            total[:-1, :-1] += kept
            total[:-1, -1] += rows - kept.sum(1)
            total[-1, :-1] += columns - kept.sum(0)
            total[-1, -1] += everything - rows.sum() - columns.sum() + kept.sum()

    def _rotated(self, weight: AdaptedWeight, x: torch.Tensor) -> torch.Tensor:
        """A sequence's inputs in V's directions (T, h)."""
        _, v = self._bases[weight.name]
        return embedding_scale(weight) * v[x] if weight.is_embedding else x.to(weight.dtype) @ v

    def _products(self, weight: AdaptedWeight, x: torch.Tensor) -> torch.Tensor:
        """The products of a sequence's inputs with each other (T, T)."""
        total = self.sums[weight.name]
        if weight.is_embedding:
            return embedding_scale(weight) ** 2 * (x[:, None] == x[None]).to(total)
        rows = x.to(weight.dtype)
        return (rows @ rows.T).to(total)

    def _check(self, weight: AdaptedWeight, gradient: torch.Tensor) -> None:
        if gradient.shape[:2] != self._shape:
            raise ALoRAError(
                f"{weight.name} does not see one row a token (a mixture of experts?), so that sequences cannot be told apart: "
                "leave it out of target_modules, or record importance 'kronecker'"
            )
        self._uses[weight.name] += 1
        if self._uses[weight.name] > self._draws:
            raise ALoRAError(
                f"{weight.name} is used twice in one pass, so that the squares of a sequence's gradient cannot be told: leave "
                "it out of target_modules, or record importance 'kronecker'"
            )
