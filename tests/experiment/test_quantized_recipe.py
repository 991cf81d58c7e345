"""A recipe over a base that bitsandbytes quantises: recorded, tuned and evaluated like any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from alora_trainer import ImportanceMap
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.methods import get_method
from alora_trainer.experiment.recipe.reading import load_recipe
from alora_trainer.experiment.run.models import load_base
from alora_trainer.experiment.run.whole_recipe import tune_recipe
from tests.tiny_recipe import write_all


def widen(folder: Path) -> None:
    """The tiny model with layers of a width that bitsandbytes' kernels for the CPU can take."""
    config = AutoConfig.from_pretrained(folder)
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 128, 16
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(str(folder))


@pytest.mark.parametrize(("kind", "layer"), [("nf4", "Linear4bit"), ("int8", "Linear8bitLt")])
def test_a_quantised_base_records_and_tunes(kind: str, layer: str, tmp_path: Path) -> None:
    settings = {
        "model.quantization": kind,
        "record.max_steps": "2",
        "tune.max_steps": "2",
        "lora.target_modules": "q_proj,v_proj",
    }
    path = write_all(tmp_path)
    widen(tmp_path / "model")
    recipe = load_recipe(path, settings | {"record.save_strategy": "no", "tune.save_strategy": "no"})
    base = load_base(recipe)
    assert {type(m).__name__ for n, m in base.named_modules() if n.endswith(("q_proj", "down_proj"))} == {layer}
    assert type(base.lm_head) is torch.nn.Linear
    for method in ("alora", "ewclora", "eva"):
        adapter = tune_recipe(recipe, get_method(method), output_dir=tmp_path / "run")
        assert any(
            bool(t.any()) for name, t in load_file(adapter / "adapter_model.safetensors").items() if "lora_B" in name
        )
    recorded = ImportanceMap.from_pretrained(tmp_path / "run" / "record" / "map")
    assert all(float(omega.sum()) > 0 for omega in recorded.values())


def test_corda_refuses_a_quantised_base(tmp_path: Path) -> None:
    recipe = load_recipe(write_all(tmp_path), {"model.quantization": "nf4", "tune.max_steps": "1"})
    with pytest.raises(ALoRAError, match="corda_kpm takes the base weights apart, which are quantised"):
        tune_recipe(recipe, get_method("corda_kpm"), output_dir=tmp_path / "run")
