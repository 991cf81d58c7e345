"""Curvature that is measured in parts of the weights: the same map, less in memory, and what is finished stays so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.recording import curvature, curvature_passes
from alora_trainer.importance.recording.curvature import estimate_curvature
from alora_trainer.importance.recording.curvature_parts import split
from alora_trainer.importance.recording.layer_moments import LayerMoments
from alora_trainer.weights.adapted import adapted_weights
from tests.importance.test_curvature import batches
from tests.importance.test_curvature_goes_on import KINDS, Stopped, assert_same_bits

TARGETS = ["q_proj", "k_proj", "v_proj", "down_proj"]


@pytest.fixture
def model(lora_model: Callable[..., Any]) -> Any:
    return lora_model(target_modules=TARGETS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parts", [2, 5, 50])
def test_parts_make_the_same_map(model: Any, kind: str, parts: int) -> None:
    data, settings = batches(rows=6, size=2), {"draws": 2, "seed": 3, "keep": 5}
    whole = estimate_curvature(model, data, kind, **settings)  # type: ignore[arg-type]
    assert_same_bits(estimate_curvature(model, data, kind, parts=parts, **settings), whole)  # type: ignore[arg-type]


def test_only_a_parts_sums_are_there_at_a_time(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []

    class Counted(LayerMoments):
        def check_seen(self) -> None:
            super().check_seen()
            held.append(sum(total.numel() for total in self.sums.values()))

    monkeypatch.setattr(curvature, "LayerMoments", Counted)
    estimate_curvature(model, batches(), parts=1)
    estimate_curvature(model, batches(), parts=4)
    whole, *parts = held
    assert len(parts) == 4 and max(parts) <= whole / 2


def test_the_weights_are_split_into_neighbours_of_about_one_size(model: Any) -> None:
    weights = adapted_weights(model)
    for parts in (1, 2, 3, 8, 100):
        made = split(weights, parts)
        assert [w.name for part in made for w in part] == [w.name for w in weights] and len(made) <= parts
        assert len(made) == min(parts, len(weights)) or parts > 3
        sizes = [sum(w.shape[0] ** 2 + w.shape[1] ** 2 for w in part) for part in made]
        assert max(sizes) <= sum(sizes) / parts + max(w.shape[0] ** 2 + w.shape[1] ** 2 for w in weights)


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_in_a_later_part_it_goes_on_there(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    data, settings = batches(rows=6, size=2), {"seed": 3, "keep": 5}
    whole = estimate_curvature(model, data, kind, **settings)  # type: ignore[arg-type]
    one, each = curvature_passes.Passes._one, 3 * (2 if kind == "ekfac" else 1)
    seen: list[int] = []

    def until(*arguments: Any) -> int:
        seen.append(1)
        if len(seen) == each + 2:  # in the second batch of the second part
            raise Stopped
        return one(*arguments)

    path = tmp_path / "at.safetensors"
    common: dict[str, Any] = {"parts": 2, "checkpoint": path, "checkpoint_every": 1, **settings}
    monkeypatch.setattr(curvature_passes.Passes, "_one", until)
    with pytest.raises(Stopped):
        estimate_curvature(model, data, kind, **common)
    seen.clear()
    assert_same_bits(estimate_curvature(model, data, kind, **common), whole)
    assert len(seen) == each - 1  # the first part is not passed through again, nor the batch that was kept
    seen.clear()
    again = estimate_curvature(model, data, kind, **common)
    assert_same_bits(again, whole)
    assert not seen and again.seconds > 0
    for stored, other in zip(whole.importance.values(), again.importance.values(), strict=True):
        assert all(torch.equal(values, other.parts[name]) for name, values in stored.parts.items())


def test_what_several_parts_cannot_be(model: Any) -> None:
    with pytest.raises(ALoRAError, match="parts=0 must be at least 1"):
        estimate_curvature(model, batches(), parts=0)
    with pytest.raises(
        ALoRAError, match="several parts go through the text more than once, and it comes from an iterator"
    ):
        estimate_curvature(model, iter(batches()), parts=2)
