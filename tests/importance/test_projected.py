"""The least-squares estimate of the true gradient: what it promises, on random factors and gradients in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alora_trainer.importance.recording import estimators
from alora_trainer.importance.recording.estimators import path, projected, projected_gradient
from alora_trainer.weights.steps import FactorStep

SHAPES = {"m": st.integers(1, 24), "n": st.integers(1, 24), "r": st.integers(1, 6), "seed": st.integers(0, 2**31)}


def make(m, n, r, seed, scaling=2.0):
    """A true gradient G (m, n), and the step that LoRA sees of it."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    g, a, b = rand(m, n), rand(r, n), rand(m, r)
    step = FactorStep(
        a=a, b=b, gradient_a=scaling * b.T @ g, gradient_b=scaling * g @ a.T, a_after=a + rand(r, n), b_after=b + rand(m, r),
        scaling=scaling, learning_rate=0.1,
    )  # fmt: skip
    return g, step


def dense(factors):
    return factors.left @ factors.right


@settings(max_examples=60, deadline=None)
@given(**SHAPES, scaling=st.floats(0.1, 8))
def test_it_is_the_damped_projection_of_the_true_gradient(m, n, r, seed, scaling):
    g, step = make(m, n, r, seed, scaling)

    def projection(rows):
        gram = rows @ rows.T
        ridge = estimators._RIDGE * gram.diagonal().mean() * torch.eye(len(rows), dtype=rows.dtype)
        return rows.T @ torch.linalg.solve(gram + ridge, rows)

    onto_a, onto_b = projection(step.a), projection(step.b.T)
    expected = g @ onto_a + onto_b @ g - onto_b @ g @ onto_a
    torch.testing.assert_close(dense(projected_gradient(step)), expected, rtol=1e-8, atol=1e-8 * float(g.norm()))


@settings(max_examples=60, deadline=None)
@given(**SHAPES)
def test_undamped_it_agrees_with_all_that_lora_sees(m, n, r, seed):
    """Its products with both factors are the gradients themselves, so that the change of the loss along any step is right."""
    r = min(m, n, r)
    _, step = make(m, n, r, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimators, "_RIDGE", 1e-13)
        estimate = dense(projected_gradient(step))
    size = float(step.gradient_a.norm() + step.gradient_b.norm())
    torch.testing.assert_close(step.scaling * step.b.T @ estimate, step.gradient_a, rtol=1e-5, atol=1e-5 * size)
    torch.testing.assert_close(step.scaling * estimate @ step.a.T, step.gradient_b, rtol=1e-5, atol=1e-5 * size)


@settings(max_examples=40, deadline=None)
@given(**SHAPES)
def test_it_does_not_depend_on_how_the_product_is_split(m, n, r, seed):
    """B R and R^-1 A are the same weight; so is their gradient. (That of the paper is not: it is no gradient of W.)"""
    r = min(m, n, r)
    g, step = make(m, n, r, seed)
    mix = torch.eye(r, dtype=torch.float64) * 3 + torch.ones(r, r, dtype=torch.float64)
    a, b = torch.linalg.solve(mix, step.a), step.b @ mix
    other = FactorStep(a, b, 2 * b.T @ g, 2 * g @ a.T, a, b, 2.0, 0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimators, "_RIDGE", 1e-13)
        one, two = dense(projected_gradient(step)), dense(projected_gradient(other))
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5 * float(g.norm()))
    if r < min(m, n):
        assert not torch.allclose(dense(path(step).gradient), dense(path(other).gradient), rtol=1e-2)


def test_a_gradient_that_lora_sees_whole_is_found_whole():
    g, step = make(5, 40, 5, 0)  # B has full row rank: P_B is the identity
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimators, "_RIDGE", 1e-13)
        torch.testing.assert_close(dense(projected_gradient(step)), g, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_factor_of_zero_is_no_trouble(dtype):
    """LoRA starts with B = 0: what is known of G is then its projection on A's rows alone."""
    g, step = make(6, 9, 3, 1)
    parts = {"a": step.a, "b": torch.zeros_like(step.b), "gradient_a": torch.zeros_like(step.a)}
    parts |= {"gradient_b": step.gradient_b, "a_after": step.a_after, "b_after": step.b_after}
    start = FactorStep(**{name: part.to(dtype) for name, part in parts.items()}, scaling=2.0, learning_rate=0.1)
    gram = step.a @ step.a.T
    ridge = estimators._RIDGE * gram.diagonal().mean() * torch.eye(3, dtype=torch.float64)
    expected = g @ step.a.T @ torch.linalg.solve(gram + ridge, step.a)
    torch.testing.assert_close(dense(projected_gradient(start)), expected.to(dtype), rtol=1e-4, atol=1e-4)
    taken = projected(start)
    movement = 2 * (step.b_after @ step.a_after)
    torch.testing.assert_close(dense(taken.movement), movement.to(dtype), rtol=1e-4, atol=1e-3)
