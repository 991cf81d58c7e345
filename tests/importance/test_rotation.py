"""The path integral along a basis, against a dense float64 rotation of everything."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.kinds.dense import DenseOmega
from alora_trainer.importance.kinds.ekfac import EkfacOmega
from alora_trainer.importance.kinds.in_basis import InBasis
from alora_trainer.importance.kinds.kronecker import HalfKroneckerOmega, KroneckerOmega
from alora_trainer.importance.recording.estimators import StepFactors
from alora_trainer.importance.recording.recorder import Recorder
from alora_trainer.importance.recording.rotation import Rotation, directions_digest
from alora_trainer.weights.adapted import adapted_weights
from alora_trainer.weights.steps import Factors, Matrix
from tests.dense_metric import random_importance


def dense(matrix: Matrix) -> torch.Tensor:
    return matrix if isinstance(matrix, torch.Tensor) else matrix.left @ matrix.right


def completed(vectors: torch.Tensor) -> torch.Tensor:
    """An orthogonal matrix whose first columns are `vectors`, and whose others are any."""
    size, kept = vectors.shape
    generator = torch.Generator().manual_seed(size)
    others = torch.randn(size, size - kept, dtype=vectors.dtype, generator=generator)
    q, r = torch.linalg.qr(torch.cat([vectors, others], dim=1))
    return q * r.diagonal().sign()


def means(values: torch.Tensor, kept: tuple[int, int]) -> torch.Tensor:
    """(m, n) in all directions as (k + 1, h + 1): the rest of either side by its mean, 0 where there is none."""
    (k, h), (m, n) = kept, values.shape
    result = values.new_zeros(k + 1, h + 1)
    result[:k, :h] = values[:k, :h]
    if h < n:
        result[:k, h] = values[:k, h:].mean(1)
    if k < m:
        result[k, :h] = values[k:, :h].mean(0)
    if k < m and h < n:
        result[k, h] = values[k:, h:].mean()
    return result


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(("kronecker", "ekfac", "covariance")), m=st.integers(1, 7), n=st.integers(1, 7),
    kept=st.tuples(st.integers(0, 7), st.integers(0, 7)), rank=st.integers(1, 4), thin=st.booleans(), seed=st.integers(0, 999),
)  # fmt: skip
def test_a_step_is_that_of_the_rotated_matrices(kind, m, n, kept, rank, thin, seed):
    basis, generator = random_importance(kind, m, n, kept, seed), torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    movement = Factors(rand(m, rank), rand(rank, n))
    gradient = Factors(rand(m, rank + 1), rand(rank + 1, n)) if thin else rand(m, n)
    rotation = Rotation(basis, torch.device("cpu"), torch.float64)
    u, v = (completed(vectors(torch.float64)) for vectors in (basis.output_vectors, basis.input_vectors))
    turned = [u.T @ dense(matrix) @ v for matrix in (gradient, movement)]
    step = rotation.step(StepFactors(gradient, movement))
    got = dense(step.gradient) * dense(step.movement)
    scale = float(turned[0].norm() * turned[1].norm())
    # The directions are orthonormal to float32's last digit.
    torch.testing.assert_close(got, means(turned[0] * turned[1], basis.kept), rtol=0, atol=1e-6 * scale)
    total = dense(rotation.total(movement)).square()
    torch.testing.assert_close(
        total, means(turned[1].square(), basis.kept), rtol=0, atol=1e-6 * float(turned[1].norm() ** 2)
    )


def record(model: Any, estimator: str, xi: float | str, bases: Any, steps: int = 3, **settings: Any) -> Any:
    """A few steps of made-up gradients and movements; the recorder's importance, and by weight the dense path and movement."""
    weights = adapted_weights(model)
    recorder = Recorder(weights, estimator, xi, bases=bases, **settings)
    generator = torch.Generator().manual_seed(8)

    def rand(tensor: torch.Tensor) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)

    start = {w.name: w.scaling * w.b @ w.a for w in weights}
    path: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {w.name: [] for w in weights}
    rates = {id(p): 0.05 for w in weights for p in w.parameters}
    for _ in range(steps):
        gradients = {w.name: tuple(rand(matrix) for matrix in w.matrices) for w in weights}
        recorder.before_step(gradients, rates)
        for w in weights:
            (a, b), (ga, gb) = w.copy(), gradients[w.name]
            w.parameter_a.data -= 0.05 * (ga + 0.3 * rand(a))
            w.parameter_b.data -= 0.05 * (gb + 0.3 * rand(b))
            gradient = w.scaling * (gb @ a + b @ ga - 0.05 * gb @ ga)
            path[w.name].append((gradient, w.scaling * (w.b @ w.a - b @ a)))
        recorder.after_step()
    moved = {w.name: w.scaling * w.b @ w.a - start[w.name] for w in weights}
    return recorder.finish(), path, moved


def bases_of(model: Any, kept: tuple[int, int], kind: str = "kronecker") -> dict[str, InBasis]:
    return {w.name: random_importance(kind, *w.shape, kept, seed=5 + i) for i, w in enumerate(adapted_weights(model))}


@pytest.mark.parametrize("kept", [(99, 99), (5, 3), (0, 4), (0, 0)], ids=str)
@pytest.mark.parametrize("xi", [1e-3, "10%"])
def test_a_recording_is_that_of_the_rotated_path(lora_model, kept, xi):
    """Eq. 13-15 with every matrix written out and turned, in float64."""
    model = lora_model(dtype=torch.float64, moved=True)
    bases = bases_of(model, kept)
    importance, path, moved = record(model, "path", xi, bases)
    for name, basis in bases.items():
        u, v = (completed(vectors(torch.float64)) for vectors in (basis.output_vectors, basis.input_vectors))
        w = -sum(means((u.T @ g @ v) * (u.T @ d @ v), basis.kept) for g, d in path[name])
        delta = means((u.T @ moved[name] @ v).square(), basis.kept)
        added = 0.1 * moved[name].square().mean() if xi == "10%" else xi
        got = importance[name]
        assert isinstance(got, EkfacOmega) and got.shape == basis.shape
        assert torch.equal(got.parts["output_vectors"], basis.output_vectors(torch.float32))
        expected = w.clamp(min=0) / (delta + added)
        assert float(expected.max()) > 0
        error = (got.parts["omega"].double() - expected).abs().max() / expected.max()
        assert float(error) < 1e-5, name


@pytest.mark.parametrize("estimator", ["path", "projected", "paper"])
def test_along_the_unit_vectors_it_is_todays_importance(lora_model, estimator):
    units = {
        w.name: EkfacOmega(
            w.shape,
            {
                "output_vectors": torch.eye(w.shape[0]),
                "input_vectors": torch.eye(w.shape[1]),
                "omega": torch.ones(w.shape[0] + 1, w.shape[1] + 1),
            },
        )
        for w in adapted_weights(lora_model(moved=True))
    }
    along, _, _ = record(lora_model(moved=True), estimator, "10%", units)
    plain, _, _ = record(lora_model(moved=True), estimator, "10%", None)
    for name, omega in plain.items():
        assert float(omega.max()) > 0
        torch.testing.assert_close(along[name].diagonal(), omega, rtol=1e-5, atol=1e-6 * float(omega.max()))
        assert not along[name].parts["omega"][-1].any() and not along[name].parts["omega"][:, -1].any()


@pytest.mark.parametrize("settings", [{"location": "cpu"}, {"location": "disk"}, {"fold_every": 2}], ids=str)
def test_every_place_and_rhythm_gives_the_same(lora_model, settings, tmp_path):
    bases = bases_of(lora_model(), (4, 3))
    folder = {"folder": tmp_path / "w"} if settings.get("location") == "disk" else {}
    expected, _, _ = record(lora_model(moved=True), "projected", 1e-3, bases)
    got, _, _ = record(lora_model(moved=True), "projected", 1e-3, bases, **settings, **folder)
    assert all(got[name].equals(one) for name, one in expected.items())


def test_directions_in_bfloat16_are_kept_as_they_are(lora_model):
    bases = {name: one.convert(HalfKroneckerOmega) for name, one in bases_of(lora_model(), (4, 3)).items()}
    importance, _, _ = record(lora_model(moved=True), "path", 1e-3, bases)
    for name, basis in bases.items():
        assert importance[name].format == "ekfac_bfloat16"
        assert torch.equal(importance[name].parts["input_vectors"], basis.parts["input_vectors"])
        importance[name].check_parts(name)


def test_other_directions_have_another_digest(lora_model):
    bases = bases_of(lora_model(), (4, 3))
    name = next(iter(bases))
    turned = dict(bases) | {name: random_importance("kronecker", *bases[name].shape, (4, 3), seed=77)}
    scaled = dict(bases) | {
        name: KroneckerOmega(bases[name].shape, bases[name].parts | {"input_values": torch.ones(4)})
    }
    assert directions_digest({}) == ""
    assert directions_digest(bases) == directions_digest(scaled) != directions_digest(turned)


def test_what_has_no_directions_is_refused(lora_model):
    model = lora_model()
    weights, bases = adapted_weights(model), bases_of(model, (4, 3))
    name = weights[1].name
    shape = weights[1].shape
    for other, words in (
        ({k: b for k, b in bases.items() if k != name}, f"along a basis for {name}: there is none"),
        (bases | {name: DenseOmega.encode(torch.ones(shape))}, f"for {name}: its importance is elementwise"),
        (
            bases | {name: random_importance("kronecker", 3, 3, (1, 1), 0)},
            f"of another model: {name} is .* and \\(3, 3\\)",
        ),
    ):
        with pytest.raises(ALoRAError, match=words):
            Recorder(weights, "path", 1e-3, bases=other)


def test_shuffled_keeps_norm_and_trace_and_moves_the_numbers() -> None:
    stored = random_importance("ekfac", 7, 6, (4, 3), 1)
    mixed = stored.shuffled(torch.Generator().manual_seed(3))
    before, after = stored.measure(), mixed.measure()
    assert (after.trace, after.norm, after.least) == pytest.approx((before.trace, before.norm, before.least))
    ours, theirs = mixed.parts["omega"], stored.parts["omega"]
    assert not torch.equal(ours, theirs) and torch.equal(ours[-1, -1], theirs[-1, -1])
    for part in ((slice(4), slice(3)), (slice(4), slice(3, None)), (slice(4, None), slice(3))):
        assert torch.equal(ours[part].flatten().sort().values, theirs[part].flatten().sort().values)
