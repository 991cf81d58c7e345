"""Intruder dimensions: found where one was planted, and reduced as PEFT's own function reduces them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods import get_method
from alora_trainer.experiment.methods.intruders import IntruderOptions, without_intruders
from tests.tiny_training import tiny_llama, with_lora


def orthogonal(size: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, columns, generator=generator, dtype=torch.float64)).Q


def planted() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A weight of four directions, a strong new one at the right side of its weakest, a change of its strongest; and what the
    tuned weight's leading direction is then, which is near none of the four: the new one and the weakest together."""
    left, right = orthogonal(12, 5, 0), orthogonal(4, 4, 1)
    weight = left[:, :4] * torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64) @ right.T
    new, own = 6.0 * torch.outer(left[:, 4], right[:, 3]), 0.5 * torch.outer(left[:, 0], right[:, 0])
    return weight, new, own, new + torch.outer(left[:, 3], right[:, 3])


@pytest.mark.parametrize("kept", [0.0, 0.25, 0.75])
def test_a_planted_intruder_is_reduced_and_the_rest_left_alone(kept: float) -> None:
    weight, new, own, leading = planted()
    found = without_intruders(weight, new + own, 2, IntruderOptions(top=3, threshold=0.5, kept=kept))
    assert found is not None and found[0].shape == (12, 2) and found[1].shape == (2, 4)
    torch.testing.assert_close(found[0] @ found[1], new + own + (kept - 1) * leading, rtol=1e-8, atol=1e-8)
    assert without_intruders(weight, own, 2, IntruderOptions()) is None
    assert without_intruders(weight, 0.1 * new, 2, IntruderOptions()) is None  # its cosine with the weakest is .86


def saved(folder: Path, **lora: Any) -> tuple[Any, Path]:
    base = tiny_llama()
    model = with_lora(base, moved=True, **lora)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.mul_(4)  # so that it leads
    model.save_pretrained(str(folder))
    return base, folder


@pytest.mark.parametrize("lora", [{}, {"use_rslora": True, "target_modules": "all-linear"}])
def test_as_peft_does_it(lora: dict[str, Any], tmp_path: Path) -> None:
    intruders = pytest.importorskip("peft.tuners.lora.intruders", reason="PEFT has it from version 0.19 on")
    base, trained = saved(tmp_path / "trained", **lora)
    options = IntruderOptions(top=10, threshold=0.6, kept=0.3)
    get_method("reduce_intruders").finish(trained, tmp_path / "ours", options, lambda: copy.deepcopy(base))
    theirs: Any = PeftModel.from_pretrained(copy.deepcopy(base), str(trained))
    intruders.reduce_intruder_dimension(
        theirs, top_k=10, threshold_epsilon=0.6, mitigation_lambda=0.3, logging_sink=None
    )
    ours: Any = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "ours"))
    changed = 0
    for name, layer in ours.named_modules():
        if hasattr(layer, "get_delta_weight") and "default" in getattr(layer, "lora_A", {}):
            other = theirs.get_submodule(name)
            expected = other.get_delta_weight("intruder_reduced")
            torch.testing.assert_close(layer.get_delta_weight("default"), expected, rtol=1e-3, atol=1e-4)
            changed += not torch.allclose(expected, other.get_delta_weight("default"), atol=1e-3)
    assert changed > 0


def test_to_keep_all_changes_no_movement(tmp_path: Path) -> None:
    base, trained = saved(tmp_path / "trained")
    options = IntruderOptions(kept=1.0, threshold=1.0)
    get_method("reduce_intruders").finish(trained, tmp_path / "ours", options, lambda: copy.deepcopy(base))
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (trained, tmp_path / "ours"))
    for name in one:
        if "lora_A" in name:
            b = name.replace("lora_A", "lora_B")
            torch.testing.assert_close(other[b] @ other[name], one[b] @ one[name], rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(one[name], other[name]) for name in one)  # in other factors


def test_numbers_out_of_range() -> None:
    for wrong in ({"top": 0}, {"threshold": 1.5}, {"kept": -0.1}):
        with pytest.raises(ALoRAError, match="must"):
            IntruderOptions(**wrong)
