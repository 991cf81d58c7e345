"""Correctness of the penalty of one weight: every backend that the device chooses, and forced ones, against float64.

The reference is written out here in float64 from what is stored, and shares nothing with any backend. On a GPU the formats that
the Triton kernel reads go through it; on a CPU, where it does not run, the blocked backend takes its place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from penalty import made_omega

from alora_trainer.importance.kinds.elementwise import Elementwise
from alora_trainer.importance.kinds.in_basis import InBasis
from alora_trainer.importance.kinds.kind import Importance
from alora_trainer.penalty.backends.backend import PenaltyResult
from alora_trainer.penalty.backends.choice import choose
from alora_trainer.weights.steps import Factors, movement_factors
from gpu_parts.cases import Cases, relative
from gpu_parts.importance import made_ekfac, made_kronecker
from gpu_parts.schedule import Budget, Figures
from gpu_parts.settings import Settings

SCALING = 4.0
KERNEL_FORMATS = ("float32", "bfloat16", "log8")
# Relative, in the Frobenius norm: what float32 leaves of sums over a weight, as in the tests of the backends.
TOLERANCE = 2e-5


@dataclass(frozen=True)
class Case:
    """One weight: its importance, and theta not far from theta*."""

    stored: Importance
    drift: Factors
    a: torch.Tensor
    b: torch.Tensor

    @classmethod
    def of(cls, stored: Importance, rank: int, device: str) -> Case:
        m, n = stored.shape
        a_star, b_star = torch.randn(rank, n, device=device), torch.randn(m, rank, device=device)
        a, b = (one + 0.01 * torch.randn_like(one) for one in (a_star, b_star))
        return cls(stored, movement_factors(a_star, b_star, a, b, SCALING), a, b)

    def run(self, backend: str | None) -> PenaltyResult:
        return choose(self.stored, self.a.device, backend)(self.stored, self.drift, self.a, self.b, SCALING)

    def errors(self, backend: str | None) -> dict[str, float]:
        """Of the value and of both gradients."""
        got, weighed = self.run(backend), product(self.stored, self.difference())
        expected = {
            "value": (weighed * self.difference()).sum(),
            "gradient_a": 2 * SCALING * self.b.double().T @ weighed,
            "gradient_b": 2 * SCALING * weighed @ self.a.double().T,
        }
        return {name: relative(getattr(got, name), tensor) for name, tensor in expected.items()}

    def difference(self) -> torch.Tensor:
        return self.drift.left.double() @ self.drift.right.double()

    def repeated(self, backend: str | None) -> float:
        """0 where two runs give the same bits, else 1."""
        first, second = self.run(backend), self.run(backend)
        names = ("value", "gradient_a", "gradient_b")
        return float(not all(torch.equal(getattr(first, name), getattr(second, name)) for name in names))


def product(stored: Importance, d: torch.Tensor) -> torch.Tensor:
    """``M D`` (m, n) in float64, for a movement D."""
    if isinstance(stored, Elementwise):
        factors = stored.thin_factors
        omega = stored.rows(slice(0, d.shape[0]), torch.float32).double()
        return d * (omega if factors is None else factors[0].double() @ factors[1].double().T)
    assert isinstance(stored, InBasis)
    u, v = stored.output_vectors(torch.float64), stored.input_vectors(torch.float64)
    k, h = u.shape[1], v.shape[1]
    omega = stored.omega_rows(slice(0, k + 1), torch.float64)
    within, rest_in, rest_out = u.T @ d @ v, u.T @ d - (u.T @ d @ v) @ v.T, d @ v - u @ (u.T @ d @ v)
    outside = d - u @ (u.T @ d) - rest_out @ v.T
    kept = u @ (omega[:k, :h] * within) @ v.T
    return kept + u @ (omega[:k, h:] * rest_in) + (rest_out * omega[k, :h]) @ v.T + omega[k, h] * outside


def correct_kernels(settings: Settings, figures: Figures, budget: Budget) -> None:
    """All cases: formats and bases by shapes and ranks, with the bits of a second run."""
    torch.manual_seed(0)
    cases = Cases(figures, budget)
    shapes = [(48, 80), (33, 70)] if settings.quick else [(3072, 3072), (1024, 3072), (1000, 4099)]
    for shape in shapes:
        for rank in (8, 5) if settings.quick else (8, 64, 5):
            for storage in (*KERNEL_FORMATS, "factored"):
                _compare(cases, storage, made_omega(shape, storage, settings.device), rank, settings)
        for keep in (16, min(shape)) if settings.quick else (64, 1000):
            for make in (made_kronecker, made_ekfac):
                stored = make(shape, keep, settings.device)
                _compare(cases, f"rotated: {stored.kind}, {keep} directions", stored, 8, settings)
    if not settings.cuda:
        figures["triton"] = {"skipped": "its kernel runs on a GPU alone: the blocked backend took its place here"}
    cases.finish()


def _compare(cases: Cases, name: str, stored: Importance, rank: int, settings: Settings) -> None:
    """What is chosen on this device, and on a GPU beside the kernel the blocked backend."""
    case = Case.of(stored, rank, settings.device)
    wanted: list[str | None] = [None]
    if stored.format in KERNEL_FORMATS:
        wanted = ["triton", "blocked"] if settings.cuda else ["blocked"]
    for forced in wanted:
        backend = forced or choose(stored, settings.device).name
        where = f"{name}, {' x '.join(map(str, stored.shape))}, rank {rank}, {backend}"
        cases.compare(where, TOLERANCE, lambda b=forced: case.errors(b))
        if forced is not None:  # these two promise it
            cases.compare(f"{where}, the bits of a second run", 0.0, lambda b=forced: case.repeated(b))
