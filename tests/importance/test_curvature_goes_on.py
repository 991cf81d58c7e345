"""An estimate of curvature that is stopped anywhere and gone on with, and one by two processes: the same as in one go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alora_trainer.errors import ALoRAError
from alora_trainer.importance.recording import curvature_passes
from alora_trainer.importance.recording.curvature import CurvatureEstimate, estimate_curvature
from tests.dense_metric import dense_metric
from tests.importance.test_curvature import batches
from tests.launching import launch_two
from tests.tiny_training import tiny_llama, with_lora

KINDS = ["kronecker", "ekfac", "covariance"]
TARGETS = ["q_proj", "v_proj", "down_proj", "embed_tokens"]


@pytest.fixture
def model(lora_model: Callable[..., Any]) -> Any:
    return lora_model(target_modules=TARGETS)


class Stopped(Exception):
    pass


def assert_same_bits(found: CurvatureEstimate, whole: CurvatureEstimate) -> None:
    assert (found.tokens, found.batches) == (whole.tokens, whole.batches)
    for name, one in whole.importance.items():
        other = found.importance[name]
        assert type(other) is type(one) and other.parts.keys() == one.parts.keys()
        for part, values in one.parts.items():
            assert other.parts[part].numpy().tobytes() == values.numpy().tobytes(), (name, part)


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_after_any_batch_it_goes_on_to_the_same_bits(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    data = batches(rows=6, size=2)
    settings: dict[str, Any] = {"draws": 2, "seed": 3, "keep": 5, "location": "cpu" if kind == "ekfac" else "device"}
    whole = estimate_curvature(model, data, kind, **settings)
    passes, one = (2 if kind == "ekfac" else 1), curvature_passes.Passes._one
    for stop in range(1, 3 * passes + 1):  # in the middle of the batch of this number, both passes counted
        seen: list[int] = []

        def until(*arguments: Any, stop: int = stop, seen: list[int] = seen) -> int:
            seen.append(1)
            if len(seen) == stop:
                raise Stopped
            return one(*arguments)

        path = tmp_path / f"{stop}.safetensors"
        monkeypatch.setattr(curvature_passes.Passes, "_one", until)
        with pytest.raises(Stopped):
            estimate_curvature(model, data, kind, checkpoint=path, checkpoint_every=1, **settings)
        assert path.is_file() == (stop > 1)
        monkeypatch.setattr(curvature_passes.Passes, "_one", one)
        assert_same_bits(estimate_curvature(model, data, kind, checkpoint=path, **settings), whole)
        assert not any(module._forward_hooks for module in model.modules())


def test_a_checkpoint_of_a_finished_pass_takes_no_batch_more(model: Any, tmp_path: Path) -> None:
    data, path = batches(rows=6, size=2), tmp_path / "at.safetensors"
    whole = estimate_curvature(model, data, tokens=15, checkpoint=path, checkpoint_every=2)
    assert (whole.tokens, whole.batches) == (20, 2)
    again = estimate_curvature(model, data, tokens=15, checkpoint=path)
    assert_same_bits(again, whole)
    assert again.seconds > 0


def test_it_goes_on_from_nothing_but_its_own(model: Any, lora_model: Callable[..., Any], tmp_path: Path) -> None:
    data, path = batches(), tmp_path / "at.safetensors"
    estimate_curvature(model, data, checkpoint=path, checkpoint_every=1)
    other = with_lora(tiny_llama(), target_modules=TARGETS)
    other.base_model.model.model.layers[0].mlp.down_proj.base_layer.weight.data += 1
    for what, text, settings in (
        (model, data, {"seed": 1}),
        (model, data, {"kind": "ekfac"}),
        (model, data, {"labels": "text"}),
        (model, data, {"draws": 2}),
        (model, data, {"keep": 2}),
        (lora_model(target_modules=["q_proj"]), data, {}),
        (other, data, {}),
    ):
        with pytest.raises(ALoRAError, match="at.safetensors belongs to another estimate: remove it, and begin anew"):
            estimate_curvature(what, text, checkpoint=path, **settings)  # type: ignore[arg-type]
    for text in (batches(seed=1), data[:2], data[::-1]):
        with pytest.raises(ALoRAError, match="at.safetensors belongs to another text"):
            estimate_curvature(model, text, checkpoint=path)
    whole = path.read_bytes()
    for content, message in (
        (whole[:100], "is damaged"),
        (whole[: len(whole) // 2], "is damaged"),
        (b"", "is damaged"),
    ):
        path.write_bytes(content)
        with pytest.raises(ALoRAError, match=message):
            estimate_curvature(model, data, checkpoint=path)
    with pytest.raises(ALoRAError, match="checkpoint_every=0 must be at least 1"):
        estimate_curvature(model, data, checkpoint=path, checkpoint_every=0)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the outcomes of two processes."""
    folder = tmp_path_factory.mktemp("two")
    launch_two("curvature_worker.py", str(folder))
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_find_what_one_does(two: Path, model: Any, kind: str) -> None:
    """Of five batches one process has three; what they draw is what one process draws for all five in turn."""
    one = estimate_curvature(model, batches(rows=10, size=2), kind, seed=5, keep=4)
    assert one.batches == 5
    first, second = (torch.load(two / f"{kind}-{rank}.pt") for rank in range(2))
    assert (first["tokens"], first["batches"]) == (one.tokens, one.batches)
    for name, stored in one.importance.items():
        for part, values in first["parts"][name].items():
            assert torch.equal(values, second["parts"][name][part])  # bit for bit
        there = type(stored)(stored.shape, first["parts"][name])
        expected = dense_metric(stored)
        torch.testing.assert_close(dense_metric(there), expected, rtol=1e-3, atol=1e-4 * float(expected.norm()))


def test_a_process_without_text_has_the_others_map(two: Path, model: Any) -> None:
    one = estimate_curvature(model, batches(rows=2), labels="text", keep=3).importance
    for rank in range(2):
        there = torch.load(two / f"alone-{rank}.pt")
        for name, stored in one.items():
            expected = dense_metric(stored)
            found = dense_metric(type(stored)(stored.shape, there[name]))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.norm()))


def test_two_processes_go_on_to_the_same_bits_and_say_when_they_are_apart(two: Path) -> None:
    for rank in range(2):
        facts = torch.load(two / f"facts-{rank}.pt")
        assert set(facts["files"]) <= {"at-1-of-2.safetensors", "at-2-of-2.safetensors"}
        assert f"at-{rank + 1}-of-2.safetensors" in facts["files"]
        assert "some processes were stopped in the first pass" in facts["apart"]
