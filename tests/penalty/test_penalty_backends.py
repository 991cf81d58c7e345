"""Every backend of the penalty against the dense difference in float64: value and both gradients."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.kinds.formats import store
from alora_trainer.importance.kinds.kind import Importance
from alora_trainer.penalty.backends.backend import PenaltyResult
from alora_trainer.penalty.backends.choice import BACKENDS, choose
from alora_trainer.weights import row_blocks
from alora_trainer.weights.steps import Factors, movement_factors
from tests.tiny_map import ELEMENTWISE_FORMATS

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
needs_interpreter = pytest.mark.skipif(
    not INTERPRETED, reason="needs TRITON_INTERPRET=1: test_triton_in_the_interpreter runs it in a process of its own"
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
KERNEL_FORMATS = ("float32", "bfloat16", "log8")


@dataclass(frozen=True)
class Case:
    """One weight's penalty: everything a backend is given."""

    stored: Importance
    drift: Factors
    a: torch.Tensor
    b: torch.Tensor
    scaling: float

    def to(self, dtype: torch.dtype, device: str = "cpu") -> Case:
        drift = Factors(self.drift.left.to(device, dtype), self.drift.right.to(device, dtype))
        return Case(self.stored.to(device), drift, self.a.to(device, dtype), self.b.to(device, dtype), self.scaling)

    def run(self, forced: str | None) -> PenaltyResult:
        backend = choose(self.stored, self.a.device, forced, self.a.dtype)
        return backend(self.stored, self.drift, self.a, self.b, self.scaling)

    def reference(self) -> PenaltyResult:
        """Written out, in float64, from the decoded Omega: nothing shared with any backend."""
        a, b = self.a.double().requires_grad_(), self.b.double().requires_grad_()
        omega = self.stored.rows(slice(0, self.stored.shape[0]), torch.float32).double()
        if self.stored.format == "float64":
            omega = self.stored.parts[""]
        theta = self.scaling * b @ a
        theta_star = theta.detach() - self.drift.left.double() @ self.drift.right.double()
        value = (omega * (theta - theta_star) ** 2).sum()
        value.backward()
        return PenaltyResult(value.detach(), a.grad, b.grad)


def make_case(m, n, r, reference_r, scaling, storage, seed, movement=None) -> Case:
    """A random case; `movement` gives a theta* that far from theta (in the form that does not cancel), None another theta*."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.randn(*shape, generator=generator)

    omega = rand(m, n).abs() ** 3
    omega[rand(m, n) < -1] = 0
    a, b = rand(r, n), rand(m, r)
    if movement is None:
        left, right = torch.cat([b * scaling, rand(m, reference_r) * -1.5], 1), torch.cat([a, rand(reference_r, n)])
        drift = Factors(left, right)
    else:
        drift = movement_factors(a + movement * rand(r, n), b + movement * rand(m, r), a, b, scaling)
    return Case(store(omega, storage), drift, a, b, scaling)


def assert_equal(got: PenaltyResult, expected: PenaltyResult, tolerance: float) -> None:
    """Relative errors in the Frobenius norm."""
    for name in ("value", "gradient_a", "gradient_b"):
        x, y = getattr(got, name), getattr(expected, name)
        assert x.shape == y.shape
        error = float((x.double().cpu() - y.double().cpu()).norm())
        assert error <= tolerance * float(y.norm()) + 1e-30, name
    assert got.value.dtype == torch.float64


cases = st.builds(
    make_case, m=st.integers(1, 40), n=st.integers(1, 300), r=st.integers(1, 9), reference_r=st.integers(1, 9),
    scaling=st.floats(0.1, 8), storage=st.sampled_from(ELEMENTWISE_FORMATS), seed=st.integers(0, 2**31),
    movement=st.sampled_from([None, 1e-3, 0.1]),
)  # fmt: skip
kernel_cases = st.builds(
    make_case, m=st.integers(1, 70), n=st.integers(1, 100), r=st.integers(1, 9), reference_r=st.integers(1, 12),
    scaling=st.floats(0.1, 8), storage=st.sampled_from(KERNEL_FORMATS), seed=st.integers(0, 2**31),
    movement=st.sampled_from([None, 1e-3]),
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(case=cases, block=st.integers(1, 3000))
def test_torch_backends_equal_the_dense_reference(case, block):
    expected = case.reference()
    names = ["dense", "blocked"] + ["gram"] * (case.stored.format == "factored")
    original, row_blocks.BLOCK_ELEMENTS = row_blocks.BLOCK_ELEMENTS, block
    try:
        for name in names:
            # The factored and the logarithmic formats decode to float32 or float64, differently in the last bits.
            exact = case.stored.format in ("float32", "bfloat16", "float64")
            assert_equal(case.to(torch.float64).run(name), expected, 1e-9 if exact else 1e-5)
            assert_equal(case.run(name), expected, 1e-4 if case.stored.format == "float64" else 2e-5)
    finally:
        row_blocks.BLOCK_ELEMENTS = original


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), r=st.integers(1, 6))
def test_factored_stays_exact_where_theta_nearly_cancels(seed, r):
    """A drift of 1e-3 of theta given as [s B, -s B*] [A; A*]: Gram matrices in float32 would keep one digit of R."""
    case = make_case(40, 50, r, r, 2.0, "factored", seed)
    generator = torch.Generator().manual_seed(seed + 1)
    a_star = case.a * (1 + 1e-3 * torch.randn(case.a.shape, generator=generator))
    drift = Factors(torch.cat([2 * case.b, -2 * case.b], 1), torch.cat([case.a, a_star]))
    close = Case(case.stored, drift, case.a, case.b, 2.0)
    assert_equal(close.run("gram"), close.to(torch.float64).run("dense"), 1e-6)


@pytest.mark.parametrize("name", [name for name in BACKENDS if name not in ("triton", "in_basis")])
def test_no_drift_no_penalty(name):
    case = make_case(30, 20, 3, 3, 2.0, "factored", 0, movement=0.0)
    result = case.run(name)
    assert float(result.value) == 0
    assert not result.gradient_a.any()
    assert not result.gradient_b.any()


def test_blocked_holds_no_dense_temporary():
    """The largest allocation is a block, whatever the size of W."""
    from torch.profiler import ProfilerActivity, profile

    for storage in ELEMENTWISE_FORMATS:
        case = make_case(1024, 1024, 4, 4, 2.0, storage, 0, movement=0.1)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            case.run("blocked")
        sizes = [e.nbytes() for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
        assert max(sizes) < 1024 * 1024 * 4 / 2.5, storage


def test_the_choice():
    stored = {name: make_case(8, 8, 2, 2, 1.0, name, 0).stored for name in ELEMENTWISE_FORMATS}
    assert choose(stored["factored"], "cpu").name == "gram"
    assert choose(stored["factored"], "cuda").name == "gram"
    for name in {name for name in ELEMENTWISE_FORMATS if not name.startswith("factored")}:
        assert choose(stored[name], "cpu").name == "blocked"
    assert choose(stored["float64"], "cuda").name == "blocked"
    assert choose(stored["float32"], "cuda", dtype=torch.float64).name == "blocked"
    for forced in ("dense", "blocked"):
        assert choose(stored["log8"], "cpu", forced).name == forced


@needs_triton
def test_the_choice_on_cuda():
    for name in KERNEL_FORMATS:
        assert choose(make_case(8, 8, 2, 2, 1.0, name, 0).stored, "cuda").name == "triton"


def test_a_backend_that_does_not_fit_is_refused(monkeypatch):
    stored = {name: make_case(8, 8, 2, 2, 1.0, name, 0).stored for name in ELEMENTWISE_FORMATS}
    with pytest.raises(ALoRAError, match="'cutlass' is unknown: use one of 'in_basis', 'gram', 'triton'"):
        choose(stored["float32"], "cpu", "cutlass")
    with pytest.raises(ALoRAError, match="stored as log8, not factored"):
        choose(stored["log8"], "cpu", "gram")
    with pytest.raises(ALoRAError, match="does not read importance stored as factored"):
        choose(stored["factored"], "cuda", "triton")
    with pytest.raises(ALoRAError, match="computes in float32, and the adapter needs float64"):
        choose(stored["float32"], "cuda", "triton", torch.float64)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ALoRAError, match="the factors are on cpu"):
        choose(stored["float32"], "cpu", "triton")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ALoRAError, match="triton is not installed"):
        choose(stored["float32"], "cuda", "triton")
    assert choose(stored["float32"], "cuda").name == "blocked"


# ---- the Triton kernel: in its interpreter, compiled without a GPU, and on one ----


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="is this process")
def test_triton_in_the_interpreter():
    """The interpreter is chosen when triton is imported, so that its tests need a process of their own."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", "-k", "interpreted", "-p", "no:cacheprovider", __file__],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "skipped" not in done.stdout.splitlines()[-1]


@needs_triton
@needs_interpreter
@settings(max_examples=5, deadline=None)
@given(case=kernel_cases)
def test_interpreted_kernel_equals_the_dense_reference(case):
    assert_equal(case.run("triton"), case.reference(), 1e-5)


@needs_triton
@needs_interpreter
@pytest.mark.parametrize(
    ("storage", "groups", "segments"),
    [("log8", 1, 1), ("float32", 3, 1), ("log8", 1, 2), ("bfloat16", 2, 3), ("log8", 7, 5)],
)
def test_interpreted_kernel_however_it_is_cut(storage, groups, segments):
    """Several tiles a program, several programs, programs without a tile."""
    from alora_trainer.penalty.backends.triton_kernel import LaunchPlan, triton_penalty

    case = make_case(40, 140, 3, 5, 1.5, storage, seed=groups)
    plan = LaunchPlan(block_m=16, block_n=32, block_k=16, rank=8, groups=groups, segments=segments, warps=4)
    result = triton_penalty(case.stored, case.drift, case.a, case.b, case.scaling, plan)
    assert_equal(result, case.reference(), 1e-5)


@needs_triton
@needs_interpreter
@pytest.mark.parametrize("r", [17, 130])
def test_interpreted_kernel_of_any_rank(r):
    """Ranks that need padding, a drift in several chunks, and a rank above what one launch takes."""
    case = make_case(33, 40, r, r, 0.5, "log8", seed=r, movement=0.1)
    assert_equal(case.run("triton"), case.reference(), 1e-5)


@needs_triton
@pytest.mark.parametrize("rank", [1, 8, 64, 128])
@pytest.mark.parametrize("shape", [(1, 1), (3072, 3072), (1024, 3072), (28672, 8192), (50, 100_000)])
def test_plan_covers_every_tile_within_its_memory(shape, rank):
    from alora_trainer.penalty.backends.triton_kernel import SLAB_BYTES, plan_launch

    rows, columns = shape
    plan = plan_launch(rows, columns, rank, 2 * rank, multiprocessors=132)
    assert plan.rank >= rank
    slabs = 4 * rank * (plan.groups * columns + plan.segments * rows)
    gradients = 4 * rank * (rows + columns)
    assert slabs <= max(SLAB_BYTES, 2 * gradients)
    assert plan.groups * plan.segments > 1 or shape == (1, 1)
    if shape == (3072, 3072) and rank <= 64:
        assert 132 <= plan.groups * plan.segments <= 4 * 132


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.skipif(sys.platform != "linux", reason="triton's compiler comes with its Linux packages")
@pytest.mark.parametrize(("storage", "r", "capability"), [("float32", 8, 90), ("bfloat16", 32, 80), ("log8", 8, 80)])
def test_kernel_compiles_for_gpus_that_are_not_here(storage, r, capability, tmp_path, monkeypatch):
    """What the interpreter cannot tell: types, layouts and shared memory of the machine code."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from alora_trainer.penalty.backends.triton_kernel import penalty_tiles, plan_launch

    plan = plan_launch(3072, 3072, r, 2 * r, multiprocessors=132)
    numbers = {"float32": "*fp32", "bfloat16": "*bf16", "log8": "*u8"}[storage]
    types = {"numbers": numbers, "scales": "*fp32" if storage == "log8" else numbers, "part_value": "*fp64"}
    types |= dict.fromkeys(("left", "right", "a", "b", "part_a", "part_b"), "*fp32")
    types |= dict.fromkeys(("m", "n", "r", "k", "tile_rows", "tile_columns"), "i32")
    constants = {
        "LOGARITHMIC": storage == "log8", "SCALE_BLOCK": 128, "BLOCK_M": plan.block_m, "BLOCK_N": plan.block_n,
        "BLOCK_K": plan.block_k, "RANK": plan.rank, "ONE_K": 2 * r <= plan.block_k, "PRECISION": "tf32x3",
    }  # fmt: skip
    signature = {name: types.get(name, "constexpr") for name in penalty_tiles.arg_names}
    compiled = triton.compile(
        ASTSource(penalty_tiles, signature, constants),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": plan.warps, "num_stages": plan.stages},
    )
    # The least that a GPU of the last generations gives one program.
    assert compiled.metadata.shared <= 64 << 10


@needs_triton
@needs_gpu
@settings(max_examples=40, deadline=None)
@given(case=kernel_cases)
def test_kernel_on_a_gpu(case):
    assert_equal(case.to(torch.float32, "cuda").run(None), case.reference(), 2e-5)


@needs_triton
@needs_gpu
@pytest.mark.parametrize("storage", KERNEL_FORMATS)
@pytest.mark.parametrize("r", [8, 17, 64, 128])
def test_kernel_on_a_gpu_at_size_and_bit_for_bit_again(storage, r):
    case = make_case(1000, 3072, r, r, 0.5, storage, seed=r, movement=0.1).to(torch.float32, "cuda")
    first, second = case.run("triton"), case.run("triton")
    assert_equal(first, case.to(torch.float64, "cuda").run("dense"), 2e-5)
    for name in ("value", "gradient_a", "gradient_b"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
