"""A finished adapter times a number is that part of the way, for every kind of LoRA that can be; the others are named."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from alora_trainer.artefact import scaled_adapter
from alora_trainer.artefact.cards.tuning import TUNING_FILE, Tuning, read_tuning
from alora_trainer.artefact.scaled_adapter import SCALED_FILE, scale_adapter
from alora_trainer.cli.command_line import main
from alora_trainer.errors import ALoRAError
from tests.tiny_training import tiny_llama, with_lora

IDS = torch.arange(2, 14).view(2, 6)
# LoRA in the forms that people use, each with factors that are not zero.
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"layers.0.self_attn.q_proj": 5},
        "alpha_pattern": {"v_proj": 24},
        "target_modules": ["q_proj", "v_proj", "down_proj"],
    },
    "all linear": {"target_modules": "all-linear"},
    "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "begun with eva": {"init_lora_weights": "eva"},
}


def saved(folder: Path, base: Any = None, **lora: Any) -> Path:
    """An adapter of a tiny model, moved at random and saved by PEFT."""
    model = with_lora(base if base is not None else tiny_llama(), moved=True, **lora)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def movements(base: Any, folder: Path) -> dict[str, torch.Tensor]:
    """What PEFT makes of an adapter: how it moves every parameter of the base model, dense."""
    merged = PeftModel.from_pretrained(copy.deepcopy(base), str(folder)).merge_and_unload()
    before = dict(base.named_parameters())
    return {
        name: p.detach().double() - before[name].double() for name, p in merged.named_parameters() if name in before
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_moves_that_part_of_the_way(kind: str, tmp_path: Path) -> None:
    base = tiny_llama(tie_word_embeddings=False)
    settings = dict(KINDS[kind])
    start = settings.pop("init_lora_weights", True)
    whole = saved(tmp_path / "whole", base, **settings)
    if start is not True:  # as a training leaves it: the setting is in the file, the values are the training's
        written = json.loads((whole / "adapter_config.json").read_text())
        (whole / "adapter_config.json").write_text(json.dumps(written | {"init_lora_weights": start}))
    part = scale_adapter(whole, 0.3, tmp_path / "part")
    assert (part / "adapter_config.json").read_bytes() == (whole / "adapter_config.json").read_bytes()
    full, scaled = movements(base, whole), movements(base, part)
    moved = [name for name, movement in full.items() if movement.any()]
    assert len(moved) >= 3
    for name, movement in full.items():
        torch.testing.assert_close(scaled[name], 0.3 * movement, rtol=1e-4, atol=1e-6)


def test_a_bias_beside_b_is_scaled_with_it(tmp_path: Path) -> None:
    """One linear layer, whose outputs are linear in the adapter."""
    base = torch.nn.Sequential(torch.nn.Linear(4, 3))
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    model: Any = get_peft_model(copy.deepcopy(base), LoraConfig(r=2, target_modules=["0"], lora_bias=True))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
    model.save_pretrained(str(tmp_path / "whole"))
    scale_adapter(tmp_path / "whole", 0.5, tmp_path / "part")
    part = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "part"))
    torch.testing.assert_close(part(x) - base(x), 0.5 * (model(x) - base(x)))


def test_the_model_goes_from_base_to_tuned(tmp_path: Path) -> None:
    base = tiny_llama().eval()
    whole = saved(tmp_path / "whole", base)
    distances = []
    expected = base(input_ids=IDS).logits
    for alpha in (1e-6, 0.25, 0.5, 1.0):
        scaled = PeftModel.from_pretrained(copy.deepcopy(base), str(scale_adapter(whole, alpha, tmp_path / f"{alpha}")))
        distances.append(float((scaled.eval()(input_ids=IDS).logits - expected).detach().norm()))
    assert distances[0] < 1e-4 and distances == sorted(distances)
    one, same = (
        load_file(whole / "adapter_model.safetensors"),
        load_file(tmp_path / "1.0" / "adapter_model.safetensors"),
    )
    assert all(torch.equal(one[name], same[name]) for name in one) and one.keys() == same.keys()


def test_b_keeps_its_dtype_and_is_rounded_once(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole", dtype=torch.bfloat16)
    part = scale_adapter(whole, 0.7, tmp_path / "part")
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (whole, part))
    for name, value in before.items():
        expected = (value.double() * 0.7).to(value.dtype) if "lora_B" in name else value
        assert after[name].dtype == value.dtype and torch.equal(after[name], expected)


@pytest.mark.parametrize(
    ("lora", "named"),
    [
        ({"use_dora": True}, "use_dora=True moves the weights otherwise"),
        ({"bias": "all"}, "bias='all' trains biases of the base model"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\] trains whole modules"),
        ({"trainable_token_indices": [3, 4]}, r"trainable_token_indices=\[3, 4\] trains rows"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' takes its beginning out of the base"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora' takes its beginning out of the base"),
    ],
)
def test_what_is_not_in_proportion_is_refused_by_name(lora: dict[str, Any], named: str, tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole", **lora)
    with pytest.raises(ALoRAError, match=f"cannot be scaled: {named}"):
        scale_adapter(whole, 0.5, tmp_path / "part")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["whole"]


def test_what_is_no_factor_is_refused_by_name(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole")
    tensors = load_file(whole / "adapter_model.safetensors")
    name = "base_model.model.model.embed_tokens.weight"  # as PEFT saves embeddings that were resized
    save_file(tensors | {name: torch.ones(4, 2)}, whole / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ALoRAError, match=f"{name} is not one of LoRA's factors"):
        scale_adapter(whole, 0.5, tmp_path / "part")


def test_other_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    tiny_llama().save_pretrained(str(tmp_path / "model"))
    whole = saved(tmp_path / "whole")
    other = tmp_path / "other"
    other.mkdir()
    (other / "adapter_config.json").write_text(json.dumps({"peft_type": "LOHA"}))
    for folder, message in (("empty", "holds no adapter"), ("model", "holds a whole model"), ("other", "kind 'LOHA'")):
        with pytest.raises(ALoRAError, match=message):
            scale_adapter(tmp_path / folder, 0.5, tmp_path / "part")
    for alpha in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ALoRAError, match="must be a positive number"):
            scale_adapter(whole, alpha, tmp_path / "part")
    with pytest.raises(ALoRAError, match="holds something else already"):
        scale_adapter(whole, 0.5, other)


def test_a_file_half_written_is_never_taken_for_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = saved(tmp_path / "whole")
    write = scaled_adapter.write_safetensors

    def torn(path: Path, types: Any, read: Callable[[str], torch.Tensor]) -> None:
        write(path, dict(list(types.items())[:1]), read)
        raise OSError("no space left on device")

    monkeypatch.setattr(scaled_adapter, "write_safetensors", torn)
    with pytest.raises(OSError, match="no space"):
        scale_adapter(whole, 0.5, tmp_path / "part")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["whole"]
    monkeypatch.undo()
    part = scale_adapter(whole, 0.5, tmp_path / "part")
    stamp = (part / "adapter_model.safetensors").stat().st_mtime_ns
    assert scale_adapter(whole, 0.5, part) == part  # it is there: nothing is done again
    assert (part / "adapter_model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(ALoRAError, match="holds something else already"):
        scale_adapter(whole, 0.6, part)


def test_the_card_says_so_and_scaling_again_multiplies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alora_trainer.cli.command_line.configure_output", lambda: None)
    whole = saved(tmp_path / "adapter")
    assert main(["scale", str(whole), "--alpha", "0.5"]) == 0
    half = tmp_path / "adapter-times-0.5"
    assert "times 0.5" in (half / "README.md").read_text() and "library_name: peft" in (half / "README.md").read_text()
    quarter = scale_adapter(half, 0.5, tmp_path / "quarter")
    assert "times 0.25" in (quarter / "README.md").read_text()
    assert json.loads((quarter / SCALED_FILE).read_text())["times"] == 0.25
    assert main(["scale", str(tmp_path / "none"), "--alpha", "0.5"]) == 2


def test_the_card_of_a_held_adapter_says_so_too(tmp_path: Path) -> None:
    whole = saved(tmp_path / "adapter")
    (whole / "tokenizer.json").write_text("{}")
    training = {"steps": 4, "predicted_rise": 0.1, "measured_rise": 0.2}
    tuning = Tuning("tiny-org/tiny-llama", None, {"estimator": "path"}, {"lam": 0.3}, training)
    (whole / TUNING_FILE).write_text(tuning.to_json())
    part = scale_adapter(whole, 0.4, tmp_path / "part")
    card = (part / "README.md").read_text()
    assert "that adapter times 0.4" in card and "tuned while its general ability was held" in card
    # How general loss rose was measured with the whole of it.
    assert read_tuning(part).training == {"steps": 4, "times": 0.4} and "general loss while training" not in card
    assert (part / "tokenizer.json").is_file()
