"""Eq. 15's xi: what a setting means, and a share of the movement against dense float64 arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alora_trainer import ALoRAConfig, ALoRAError
from alora_trainer.importance.recording.damping import Damping
from alora_trainer.importance.recording.fold import consolidate
from alora_trainer.importance.recording.recorder import Recorder
from alora_trainer.weights import row_blocks
from alora_trainer.weights.adapted import adapted_weights
from alora_trainer.weights.steps import Factors
from tests.importance.test_recorder import InOrder


@pytest.mark.parametrize(
    ("text", "setting"),
    [(1e-3, 1e-3), ("1e-3", 1e-3), (2, 2.0), ("10%", "10%"), (" 10.0 % ", "10%"), ("1e1%", "10%"), (".5%", "0.5%")],
)
def test_a_setting_has_one_spelling(text: float | str, setting: float | str) -> None:
    assert Damping.parse(text).setting == setting
    assert Damping.parse(setting) == Damping.parse(text)
    assert ALoRAConfig(xi=text).xi == setting
    assert ALoRAConfig(xi=text) == ALoRAConfig(xi=setting)


@pytest.mark.parametrize(
    "xi", [0, -1.0, "0%", "-3%", "%", "ten", "10 percent", "1.2.3%", math.nan, math.inf, "1e999%", True, []]
)
def test_what_is_no_damping_is_refused(xi: object) -> None:
    with pytest.raises(ALoRAError, match="xi=.* must be a positive number .*, or a share"):
        ALoRAConfig(xi=xi)  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(
    m=st.integers(1, 30), n=st.integers(1, 30), r=st.integers(1, 4), block=st.integers(1, 200),
    share=st.floats(1e-3, 10), size=st.floats(-8, 2), thin=st.booleans(), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_a_share_is_of_the_mean_squared_movement(m, n, r, block, share, size, thin, seed):
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(*of, generator=generator, dtype=torch.float64) for of in ((m, r), (r, n)))
    total = Factors(left * 10**size, right) if thin else left @ right * 10**size
    delta = left @ right * 10**size
    w = torch.randn(m, n, generator=generator, dtype=torch.float64)
    expected = w.clamp(min=0) / (delta**2 + share * (delta**2).mean())
    original, row_blocks.BLOCK_ELEMENTS = row_blocks.BLOCK_ELEMENTS, block
    try:
        xi = Damping(share=share).of(total, (m, n))
        torch.testing.assert_close(consolidate(w.clone(), total, xi), expected, rtol=1e-9, atol=0)
    finally:
        row_blocks.BLOCK_ELEMENTS = original


def test_a_weight_that_stayed_where_it_was_has_no_importance() -> None:
    still = Factors(torch.zeros(3, 2), torch.ones(2, 4))
    for w in (torch.zeros(3, 4), torch.ones(3, 4)):
        omega = consolidate(w, still, Damping(share=0.1).of(still, (3, 4)))
        assert torch.equal(omega, torch.zeros(3, 4))


def test_a_movement_too_small_for_float32_squares_stays_finite() -> None:
    tiny = Factors(torch.full((2, 1), 1e-25), torch.ones(1, 2))
    omega = consolidate(torch.ones(2, 2), tiny, Damping(share=0.01).of(tiny, (2, 2)))
    assert bool(torch.isfinite(omega).all()) and bool((omega > 0).all())


def test_recorded_with_a_share_is_recorded_with_that_number_layer_by_layer(lora_model, token_data, training_arguments):
    """From one and the same path, with the xi of each layer worked out densely; and it is what `so_far` says before the end."""
    model = lora_model(dtype=torch.float64, moved=True)
    before = {n: m.get_delta_weight("default").detach() for n, m in model.named_modules() if hasattr(m, "lora_A")}
    relative = InOrder(
        model, training_arguments(), train_dataset=token_data(), alora=ALoRAConfig(record="path", xi="10%")
    )
    relative.train()
    literal = InOrder(
        lora_model(dtype=torch.float64, moved=True), training_arguments(), train_dataset=token_data(),
        alora=ALoRAConfig(record="path", xi=1e-3),
    )  # fmt: skip
    literal.train()
    shares = set()
    for module_name, start in before.items():
        name = module_name.removeprefix("base_model.model.")
        squares = (model.get_submodule(module_name).get_delta_weight("default").detach() - start).square()
        expected = literal.importance[name] * (squares + 1e-3) / (squares + 0.1 * squares.mean())
        torch.testing.assert_close(relative.importance[name], expected, rtol=1e-6, atol=0)
        shares.add(float(squares.mean()))
    assert len(shares) == len(before) > 1
    assert (relative.importance.info.xi, relative.importance.info.xi_share) == (None, 0.1)
    assert (literal.importance.info.xi, literal.importance.info.xi_share) == (1e-3, None)


def test_a_share_does_not_know_in_which_units_a_weight_moves(lora_model) -> None:
    """The layer's relative importance is the same if the gradients were a thousandth and the movement a hundredth."""
    omegas = []
    for size in (1.0, 1e-2):
        model = lora_model(dtype=torch.float64, moved=True)
        weights = adapted_weights(model)
        recorder = Recorder(weights, "path", "10%")
        generator = torch.Generator().manual_seed(4)
        gradients = {
            w.name: tuple(torch.randn(m.shape, generator=generator, dtype=m.dtype) * 1e-3 * size for m in w.matrices)
            for w in weights
        }
        recorder.before_step(gradients, {id(p): 0.0 for w in weights for p in w.parameters})
        for weight in weights:  # B alone, so that the movement is in proportion
            weight.parameter_b.data += torch.randn(weight.b.shape, generator=generator, dtype=weight.b.dtype) * size
        recorder.after_step()
        early = recorder.so_far()
        omegas.append(recorder.finish())
        assert all(torch.equal(early[name], omega) for name, omega in omegas[-1].items())
    for name, omega in omegas[0].items():
        assert bool((omega > 0).any())
        torch.testing.assert_close(
            omegas[1][name] / omegas[1][name].mean(), omega / omega.mean(), rtol=1e-9, atol=1e-12
        )
