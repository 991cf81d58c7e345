"""The penalty of one weight in one fused kernel launch and a small reduction: each tile of Omega is read once.

A program owns a rectangle of tiles: a group of tile rows by a segment of tile columns. It goes along a tile row with its
sum for dR/dB in registers, and adds to dR/dA in a slab that no other program touches. A second launch adds the programs'
slabs up in a fixed order, so that equal input gives equal bits: no atomics.

    part_a (groups, n, r),  part_b (segments, m, r),  part_value (groups * segments)

Nothing of W's own size is written; the slabs stay under `SLAB_BYTES` for any rank, unless a gradient itself is larger.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# (a kernel's parameters are pointers and numbers of Triton's own)

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import cast

import torch
import triton
import triton.language as tl

from alora_trainer.importance.kinds.elementwise import CodedElements, Elementwise
from alora_trainer.importance.kinds.kind import Importance
from alora_trainer.penalty.backends.backend import PenaltyResult
from alora_trainer.weights.steps import Factors

# All slabs of one launch together. They come from torch's caching allocator, once for all weights.
SLAB_BYTES = 32 << 20
# The accumulators of a higher rank do not fit the registers; such factors are taken in slices of this rank.
LARGEST_RANK = 128
# As many programs as a multiprocessor's registers hold at once, all in one wave.
_PROGRAMS_PER_MULTIPROCESSOR = 3
# Small tiles: three products in tf32x3 each hold their operands twice, and spilled registers cost more than reloaded factors.
BLOCK_N = 32
_REDUCED_AT_ONCE = 1024


@dataclass(frozen=True)
class LaunchPlan:
    """How one weight is cut up: tile sizes, padded rank, and how many groups of rows and segments of columns."""

    block_m: int
    block_n: int
    block_k: int
    rank: int
    groups: int
    segments: int
    warps: int
    stages: int = 1


def plan_launch(rows: int, columns: int, rank: int, drift_rank: int, multiprocessors: int) -> LaunchPlan:
    """A plan for an Omega (rows, columns), factors of `rank` (128 at most) and a drift of `drift_rank`."""
    padded = max(8, triton.next_power_of_2(rank))
    block_m, warps = (64, 4) if padded <= 16 else (32, 4) if padded <= 32 else (32, 8)
    block_k = min(32, max(16, triton.next_power_of_2(drift_rank)))
    tile_rows, tile_columns = triton.cdiv(rows, block_m), triton.cdiv(columns, BLOCK_N)
    # The slabs hold groups * columns + segments * rows numbers for each rank: least where the two are equal.
    programs = multiprocessors * _PROGRAMS_PER_MULTIPROCESSOR
    groups = _even_parts(tile_rows, round((programs * rows / columns) ** 0.5))
    segments = _even_parts(tile_columns, triton.cdiv(programs, groups))
    while 4 * rank * (groups * columns + segments * rows) > SLAB_BYTES:
        if segments > 1 and segments * rows >= groups * columns:
            segments = triton.cdiv(segments, 2)
        elif groups > 1 and groups * columns >= segments * rows:
            groups = triton.cdiv(groups, 2)
        else:
            break  # one slab as large as the gradient itself is the least there can be
    return LaunchPlan(block_m, BLOCK_N, block_k, padded, groups, segments, warps)


def _even_parts(tiles: int, wanted: int) -> int:
    """How many parts of one size `tiles` tiles make: `wanted` at most, and none of them empty."""
    return triton.cdiv(tiles, triton.cdiv(tiles, min(max(wanted, 1), tiles)))


def triton_penalty(
    importance: Importance,
    drift: Factors,
    a: torch.Tensor,
    b: torch.Tensor,
    scaling: float,
    plan: LaunchPlan | None = None,
    precision: str | None = None,
) -> PenaltyResult:
    """As `blocked_penalty`, for float32 factors and an Omega that has `coded_elements` in float32, bfloat16 or 8-bit codes.

    Args:
        plan: how to cut the weight up; None for `plan_launch`'s.
        precision: of the products of tiles, as `tl.dot` names it; None for the fastest that keeps float32's accuracy.
    """
    coded = cast(Elementwise, importance.to(a.device)).coded_elements
    assert coded is not None  # as the choice of the backend sees to
    left, right = drift.left.contiguous(), drift.right.contiguous()
    # Not every AMD GPU has what tf32x3 needs.
    precision = precision or ("ieee" if torch.version.hip else "tf32x3")
    results = []
    with torch.cuda.device(a.device) if a.is_cuda else nullcontext():
        for start in range(0, a.shape[0], LARGEST_RANK):
            ranks = slice(start, start + LARGEST_RANK)
            results.append(
                _launch(coded, left, right, a[ranks].contiguous(), b[:, ranks].contiguous(), scaling, plan, precision)
            )
    if len(results) == 1:
        return results[0]
    return PenaltyResult(
        results[0].value, torch.cat([x.gradient_a for x in results]), torch.cat([x.gradient_b for x in results], dim=1)
    )


def _launch(
    coded: CodedElements, left: torch.Tensor, right: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float,
    plan: LaunchPlan | None, precision: str,
) -> PenaltyResult:  # fmt: skip
    (m, n), (r, k), device = coded.numbers.shape, (a.shape[0], left.shape[1]), a.device
    plan = plan or plan_launch(m, n, r, k, _multiprocessors(device))
    programs = plan.groups * plan.segments
    part_a = torch.empty(plan.groups, n, r, device=device)
    part_b = torch.empty(plan.segments, m, r, device=device)
    part_value = torch.empty(programs, dtype=torch.float64, device=device)
    numbers = coded.numbers.contiguous()
    scales = coded.scales.contiguous() if coded.scales is not None else numbers
    penalty_tiles[(plan.groups, plan.segments)](
        numbers, scales, left, right, a, b, part_a, part_b, part_value, m, n, r, k,
        triton.cdiv(triton.cdiv(m, plan.block_m), plan.groups),
        triton.cdiv(triton.cdiv(n, plan.block_n), plan.segments),
        LOGARITHMIC=coded.scales is not None, SCALE_BLOCK=coded.block, BLOCK_M=plan.block_m, BLOCK_N=plan.block_n,
        BLOCK_K=plan.block_k, RANK=plan.rank, ONE_K=k <= plan.block_k, PRECISION=precision, num_warps=plan.warps,
        num_stages=plan.stages,
    )  # fmt: skip
    gradient_a, gradient_b = torch.empty_like(a), torch.empty_like(b)
    value = torch.empty((), dtype=torch.float64, device=device)
    blocks_a, blocks_b = triton.cdiv(r * n, _REDUCED_AT_ONCE), triton.cdiv(m * r, _REDUCED_AT_ONCE)
    add_parts[(1 + blocks_a + blocks_b,)](
        part_a, part_b, part_value, gradient_a, gradient_b, value, plan.groups, plan.segments, programs, r * n, m * r,
        r, blocks_a, 2.0 * scaling, BLOCK=_REDUCED_AT_ONCE,
    )  # fmt: skip
    return PenaltyResult(value, gradient_a, gradient_b)


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@triton.jit
def _omega_tile(
    numbers, scales, rows, columns, m, n,
    LOGARITHMIC: tl.constexpr, SCALE_BLOCK: tl.constexpr,
):  # fmt: skip
    """Omega's tile in float32, zero outside of the matrix. A tile's columns share a scale: BLOCK_N divides SCALE_BLOCK."""
    row_offsets = rows.to(tl.int64)
    inside = (rows < m)[:, None] & (columns < n)[None, :]
    tile = tl.load(numbers + (row_offsets * n)[:, None] + columns[None, :], mask=inside, other=0).to(tl.float32)
    if LOGARITHMIC:
        pair = row_offsets * ((n + SCALE_BLOCK - 1) // SCALE_BLOCK) + tl.min(columns, axis=0) // SCALE_BLOCK
        low = tl.load(scales + 2 * pair, mask=rows < m, other=0.0)
        step = tl.load(scales + 2 * pair + 1, mask=rows < m, other=0.0)
        tile = tl.where(tile > 0.0, tl.exp2((tile - 1.0) * step[:, None] + low[:, None]), 0.0)
    return tile


@triton.jit
def penalty_tiles(
    numbers, scales, left, right, a, b, part_a, part_b, part_value, m, n, r, k, tile_rows, tile_columns,
    LOGARITHMIC: tl.constexpr, SCALE_BLOCK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, RANK: tl.constexpr, ONE_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: `tile_rows` by `tile_columns` tiles. All matrices are row-major and contiguous."""
    group, segment = tl.program_id(0), tl.program_id(1)
    ranks, inner = tl.arange(0, RANK), tl.arange(0, BLOCK_K)
    value = tl.zeros((BLOCK_M,), tl.float32)
    slab_a = part_a + group.to(tl.int64) * n * r
    for tile_row in range(0, tile_rows):
        rows = (group * tile_rows + tile_row) * BLOCK_M + tl.arange(0, BLOCK_M)
        in_m = (rows < m)[:, None]
        b_offsets, b_inside = (rows * r)[:, None] + ranks[None, :], in_m & (ranks < r)[None, :]
        b_tile = tl.load(b + b_offsets, mask=b_inside, other=0.0)
        left_pointers = left + (rows * k)[:, None] + inner[None, :]
        if ONE_K:
            left_tile = tl.load(left_pointers, mask=in_m & (inner < k)[None, :], other=0.0)
        gradient_b = tl.zeros((BLOCK_M, RANK), tl.float32)
        for tile_column in range(0, tile_columns):
            columns = (segment * tile_columns + tile_column) * BLOCK_N + tl.arange(0, BLOCK_N)
            in_n = (columns < n)[None, :]
            omega = _omega_tile(numbers, scales, rows, columns, m, n, LOGARITHMIC, SCALE_BLOCK)
            sum_pointers = slab_a + (columns * r)[:, None] + ranks[None, :]
            sum_inside = (columns < n)[:, None] & (ranks < r)[None, :]
            before = tl.load(sum_pointers, mask=sum_inside & (tile_row > 0), other=0.0)
            a_tile = tl.load(a + ranks[:, None] * n + columns[None, :], mask=(ranks < r)[:, None] & in_n, other=0.0)
            right_pointers = right + inner[:, None] * n + columns[None, :]
            if ONE_K:
                right_tile = tl.load(right_pointers, mask=(inner < k)[:, None] & in_n, other=0.0)
                difference = tl.dot(left_tile, right_tile, input_precision=PRECISION)
            else:
                difference = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
                for start in range(0, k, BLOCK_K):
                    in_k = start + inner < k
                    left_part = tl.load(left_pointers + start, mask=in_m & in_k[None, :], other=0.0)
                    right_part = tl.load(right_pointers + start * n, mask=in_k[:, None] & in_n, other=0.0)
                    difference = tl.dot(left_part, right_part, difference, input_precision=PRECISION)
            weighted = omega * difference
            value += tl.sum(weighted * difference, axis=1)
            gradient_b = tl.dot(weighted, tl.trans(a_tile), gradient_b, input_precision=PRECISION)
            gradient_a = tl.dot(tl.trans(weighted), b_tile, before, input_precision=PRECISION)
            tl.store(sum_pointers, gradient_a, mask=sum_inside)
        tl.store(part_b + segment.to(tl.int64) * m * r + b_offsets, gradient_b, mask=b_inside)
        # The next tile row reads what this one wrote to the slab, perhaps by other threads.
        tl.debug_barrier()
    program = group * tl.num_programs(1) + segment
    tl.store(part_value + program, tl.sum(value.to(tl.float64), axis=0))


@triton.jit
def _add_slabs(parts, out, count, size, block, stride, factor, BLOCK: tl.constexpr):
    """``out = factor * sum over count slabs of size elements``, in the slabs' order; a slab holds out's transpose.

    `stride` is the slabs' number of columns; with 1 the order is out's own.
    """
    offsets = block * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < size
    total = tl.zeros((BLOCK,), tl.float32)
    for part in range(0, count):
        total += tl.load(parts + tl.cast(part, tl.int64) * size + offsets, mask=inside, other=0.0)
    tl.store(out + (offsets % stride) * (size // stride) + offsets // stride, total * factor, mask=inside)


@triton.jit
def add_parts(
    part_a, part_b, part_value, gradient_a, gradient_b, value, groups, segments, programs, size_a, size_b, r, blocks_a,
    factor, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program 0 adds the values up, the next `blocks_a` the slabs of A's gradient, the rest those of B's."""
    program = tl.program_id(0)
    if program == 0:
        total = tl.zeros((BLOCK,), tl.float64)
        for start in range(0, programs, BLOCK):
            offsets = start + tl.arange(0, BLOCK)
            total += tl.load(part_value + offsets, mask=offsets < programs, other=0.0)
        tl.store(value, tl.sum(total, axis=0))
    elif program <= blocks_a:
        _add_slabs(part_a, gradient_a, groups, size_a, program - 1, r, factor, BLOCK)
    else:
        _add_slabs(part_b, gradient_b, segments, size_b, program - 1 - blocks_a, 1, factor, BLOCK)
