"""From sums over text to eigenvectors: one matrix at a time, in float64, each process its share."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from alora_trainer.basics.processes import Processes
from alora_trainer.errors import ALoRAError, Diverged
from alora_trainer.importance.kinds.eigenbasis import EigenSide, eigen_side, kept_directions
from alora_trainer.importance.recording.layer_moments import GRADIENTS, INPUTS, LayerMoments

# Of a side with more dimensions, no matrix is made: it alone would take 4 GiB, and be decomposed for hours.
LARGEST_SIDE = 32768


def check_sides(
    shapes: Mapping[str, tuple[int, int]], embeddings: frozenset[str], outputs: bool, keep: int | None
) -> None:
    """Raises ALoRAError if a weight has a side that is too large to decompose.

    Args:
        shapes: (m, n) by weight name.
        embeddings: the names of those whose inputs are tokens: these have no matrix, but unit vectors.
        outputs: whether the outputs' side is decomposed, too.
        keep: how many eigenvectors at most.
    """
    for name, (rows, columns) in shapes.items():
        if name in embeddings and min(columns, columns if keep is None else keep) > LARGEST_SIDE:
            raise ALoRAError(
                f"{name} has {columns:,} tokens, and all of them would be kept as directions: keep fewer (keep=64, say), or "
                "leave it out of target_modules"
            )
        size = max(rows if outputs else 0, 0 if name in embeddings else columns)
        if size > LARGEST_SIDE:
            raise ALoRAError(
                f"{name} has a side of {size:,} dimensions, too many to decompose (at most {LARGEST_SIDE:,}): leave it out of "
                "target_modules"
            )


def decompose(
    moments: LayerMoments, sizes: Mapping[str, int], tokens: int, keep: int | None, share: float | None
) -> tuple[dict[str, EigenSide], dict[str, EigenSide]]:
    """The sides of every weight, in host memory and alike on all processes; the sums are used up.

    A sum is let go as soon as it is decomposed. Vectors come in float32, which is what they are kept in, values in float64.

    Args:
        moments: of this process; `agree` and `check_seen` have been called.
        sizes: m by weight name.
        tokens: what the gradients' sums are divided by.
        keep, share: as `eigen_side` has them.

    Returns:
        The outputs' sides by weight name, and the inputs' by leader.

    Raises:
        Diverged: a sum is not finite.
    """
    processes = Processes()
    owners = processes.owners({key: total.numel() for key, total in moments.sums.items()})
    lengths = {key: total.shape[0] if total.ndim else sizes[_name(key)] for key, total in moments.sums.items()}
    _add_up(moments, processes, owners)
    own = {}
    for key in list(moments.sums):
        divisor = tokens if key.startswith(f"{GRADIENTS}.") else moments.rows[_name(key)]
        mean = moments.sums.pop(key).to(moments.devices[_name(key)], torch.float64).div_(divisor)
        own[key] = _side(mean, lengths[key], keep, share)
        del mean
    found = {key: _from_owner(own.get(key), length, owners[key], processes) for key, length in lengths.items()}
    outputs, inputs = (
        {_name(key): one for key, one in found.items() if key.startswith(f"{side}.")} for side in (GRADIENTS, INPUTS)
    )
    return outputs, inputs


def _name(key: str) -> str:
    return key.partition(".")[2]


def _add_up(moments: LayerMoments, processes: Processes, owners: Mapping[str, int]) -> None:
    """Add every sum up over processes, once, in float64; each process keeps its own share of them.

    Raises:
        Diverged: a sum is not finite (on all processes, so that none waits for another).
    """
    for key in list(moments.sums):
        total = moments.sums[key]
        if processes.count > 1:
            all_of_it = total.to(moments.devices[_name(key)], torch.float64, copy=True)
            processes.sum([all_of_it])
            moments.sums[key] = total = all_of_it.to(total)
            del all_of_it
        if not bool(torch.isfinite(total).all()):
            raise not_finite(_name(key))
        if owners[key] != processes.rank:
            del moments.sums[key]


def _side(mean: torch.Tensor, length: int, keep: int | None, share: float | None) -> EigenSide:
    """Of a matrix, of a diagonal, or of a number: the mean of a diagonal whose directions are not asked for."""
    if mean.ndim == 0:
        side = EigenSide(mean.new_zeros(length, 0), mean[None])
    elif mean.ndim == 1:
        side = _diagonal_side(mean, keep, share)
    else:
        side = eigen_side(mean, keep, share)
    return EigenSide(side.vectors.float().cpu(), side.values.cpu())


def _diagonal_side(diagonal: torch.Tensor, keep: int | None, share: float | None) -> EigenSide:
    """`eigen_side` of a diagonal matrix: unit vectors, of the largest elements."""
    values, order = diagonal.sort(descending=True, stable=True)
    kept = kept_directions(values, keep, share)
    vectors = torch.zeros(len(values), kept, device=values.device)
    vectors[order[:kept], torch.arange(kept, device=values.device)] = 1
    rest = values[kept:].mean() if kept < len(values) else values.new_zeros(())
    return EigenSide(vectors, torch.cat([values[:kept], rest[None]]))


def _from_owner(own: EigenSide | None, length: int, owner: int, processes: Processes) -> EigenSide:
    if processes.count == 1:
        assert own is not None
        return own
    kept = processes.from_owner(torch.tensor([0 if own is None else own.vectors.shape[1]]), owner)
    vectors, values = torch.zeros(length, int(kept)), torch.zeros(int(kept) + 1, dtype=torch.float64)
    here = EigenSide(vectors, values) if own is None else own
    there = processes.from_owner(here.vectors, owner) if int(kept) else here.vectors
    return EigenSide(there, processes.from_owner(here.values, owner))


def not_finite(name: str) -> Diverged:
    """What to raise about the curvature of a weight that is NaN or infinite."""
    return Diverged("the curvature", name, advice="load the model in another dtype, such as bfloat16 or float32")
