"""Values that no importance has are refused in every way of reading: also where a conversion on the way would hide them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from alora_trainer import ALoRAError, ImportanceMap, load_reference
from alora_trainer.artefact import files
from alora_trainer.artefact.hub.download import pull
from alora_trainer.basics.safetensors_writer import tensor_digest
from alora_trainer.importance.importance_values import ImportanceValues
from alora_trainer.weights.reference import FullReference
from alora_trainer.weights.theta import FullTheta
from tests.artefact.test_untrusted_maps import Q0, fill, forge
from tests.tiny_map import ELEMENTWISE_FORMATS, change_config, make_map

FORBIDDEN = {"NaN": (float("nan"), "NaN"), "infinite": (float("inf"), "infinite"), "negative": (-1e-30, "negative")}


@pytest.fixture(scope="module", params=FORBIDDEN)
def forbidden(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A map with one such value, all its checksums right; what the refusal says."""
    value, message = FORBIDDEN[request.param]
    folder = tmp_path_factory.mktemp("forbidden") / "map"
    make_map().save_pretrained(folder)
    forge(folder, "float32", "", fill(value))
    return folder, message


@pytest.mark.parametrize("storage", [None, *ELEMENTWISE_FORMATS])
def test_it_is_refused_whatever_it_is_read_as(forbidden: tuple[Path, str], storage: str | None) -> None:
    folder, message = forbidden
    with pytest.raises(ALoRAError, match=message):
        ImportanceMap.from_pretrained(folder, storage=storage)
    with pytest.raises(ALoRAError, match=message):
        ImportanceMap.from_pretrained(folder, storage=storage, layers=[0])
    assert len(ImportanceMap.from_pretrained(folder, storage=storage, layers=[1])) == 2  # it is not in these


@pytest.mark.parametrize(
    "wanted", [{}, {"storage": "log8"}, {"layers": [0]}, {"layers": [0], "storage": "log8"}], ids=str
)
def test_it_is_not_pulled(forbidden: tuple[Path, str], tmp_path: Path, wanted: dict[str, Any]) -> None:
    folder, message = forbidden
    with pytest.raises(ALoRAError, match=message):
        pull(str(folder), tmp_path / "pulled", **wanted)
    assert not (tmp_path / "pulled").exists()


def values_of(value: float) -> ImportanceMap:
    kept = make_map()
    return kept.with_omega({name: torch.full_like(kept[name], value, dtype=torch.float64) for name in kept})


@pytest.mark.parametrize(
    ("storage", "value"), [("float32", 1e-60), ("log8", 1e-60), ("bfloat16", 1e-44), ("factored", 1e-39)]
)
def test_values_out_of_a_formats_range_are_not_made_zero(tmp_path: Path, storage: str, value: float) -> None:
    importance = values_of(value)
    ways: list[Callable[[], Any]] = [
        lambda: importance.convert(storage),
        lambda: importance.save_pretrained(tmp_path / "other", storage=storage),
        lambda: ImportanceMap.from_pretrained(tmp_path / "map", storage=storage),
    ]
    importance.save_pretrained(tmp_path / "map")
    for convert in ways:
        with pytest.raises(
            ALoRAError, match=f"cannot be kept as '{storage}': its values are out of that format's range"
        ):
            convert()
    assert not (tmp_path / "other").exists()


def test_nothing_at_all_stays_nothing_in_every_format() -> None:
    nothing = values_of(0.0)
    assert all(nothing.convert(storage).mean == 0 for storage in ELEMENTWISE_FORMATS)


def test_other_tensors_of_an_adapter_are_looked_at(tmp_path: Path) -> None:
    """A bias or a saved module, say, which no weight of the map is made of."""
    make_map().save_pretrained(tmp_path / "map")
    file = tmp_path / "map" / files.ADAPTER_FILE
    state = load_file(file) | {"base_model.model.lm_head.bias": torch.tensor([1.0, float("nan")])}
    save_file(state, file, metadata={"format": "pt"})

    def tell(config: dict[str, Any]) -> None:
        key = "base_model.model.lm_head.bias"
        entry = {"file": file.name, "key": key, "dtype": "float32", "shape": [2], "sha256": tensor_digest(state[key])}
        config["adapter"]["tensors"][key] = entry
        config["files"][file.name] = file.stat().st_size

    change_config(tmp_path / "map", tell)
    with pytest.raises(ALoRAError, match="lm_head.bias in .* holds NaN"):
        ImportanceMap.from_pretrained(tmp_path / "map")


def test_theta_out_of_the_models_range_is_not_set() -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False)).half()
    theta = FullTheta({"0": FullReference(torch.full((2, 2), 1e6))})
    before = layer[0].weight.clone()
    with pytest.raises(ALoRAError, match="theta. of 0 is out of the range of torch.float16"):
        load_reference(layer, ImportanceMap({"0": torch.ones(2, 2)}, theta))
    assert torch.equal(layer[0].weight, before)


def test_values_in_memory_are_looked_at() -> None:
    kept = make_map()
    with pytest.raises(ALoRAError, match="negative"):
        ImportanceValues({Q0: -torch.ones(16, 16)}, kept.theta)
