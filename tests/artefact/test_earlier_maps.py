"""Maps that were written before importance had kinds: they load, to the same numbers, and are checked as they were."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from alora_trainer import ALoRAError, ImportanceMap
from alora_trainer.artefact.hub.inspect import describe
from alora_trainer.artefact.reading import verify_map
from alora_trainer.weights.parameterization import Parameterization

# `expected.json` has what the code that wrote them read out of them.
MAPS = Path(__file__).parent / "maps"
EXPECTED: dict[str, Any] = json.loads((MAPS / "expected.json").read_text())
CASES = [(name, storage) for name, facts in EXPECTED.items() for storage in facts["omega"]]


@pytest.mark.parametrize(("name", "storage"), CASES)
def test_it_gives_the_same_numbers(name: str, storage: str) -> None:
    assert "kind" not in json.loads((MAPS / name / "importance_config.json").read_text())
    importance, expected = ImportanceMap.from_pretrained(MAPS / name, storage=storage), EXPECTED[name]
    assert (importance.kind, importance.storage) == ("elementwise", storage)
    assert list(importance) == list(expected["omega"][storage])
    for weight, omega in expected["omega"][storage].items():
        torch.testing.assert_close(importance[weight], torch.tensor(omega), rtol=1e-6, atol=0)
        reference = importance.reference[weight]
        full = importance.parameterization is Parameterization.FULL
        theta = reference.weight if full else reference.scaling * reference.b @ reference.a
        torch.testing.assert_close(theta, torch.tensor(expected["theta"][weight]), rtol=1e-6, atol=1e-7)
    if storage == next(iter(expected["omega"])):
        assert importance.layer_norms == pytest.approx(expected["layer_norms"], rel=1e-6)
        assert importance.mean == pytest.approx(expected["mean"], rel=1e-6)


def test_what_was_trained_is_known() -> None:
    adapter, full = (ImportanceMap.from_pretrained(MAPS / name) for name in ("adapter", "full"))
    assert adapter.parameterization is Parameterization.ADAPTER and adapter.adapter_config.r == 2
    assert len(adapter.adapter_state) == 4 and adapter.base_samples["layers.0.q_proj"] == [0.5, -0.25]
    assert full.parameterization is Parameterization.FULL
    assert full.adapter_config is None and full.adapter_state == {}
    assert "adapter       4 tensors" in describe(str(MAPS / "adapter"))
    assert "theta*        the weights themselves" in describe(str(MAPS / "full"))


@pytest.mark.parametrize("name", list(EXPECTED))
def test_written_again_it_says_its_kind_and_is_the_same(name: str, tmp_path: Path) -> None:
    importance = ImportanceMap.from_pretrained(MAPS / name)
    importance.save_pretrained(tmp_path / "map")
    assert verify_map(tmp_path / "map").kind == "elementwise"
    assert json.loads((tmp_path / "map" / "importance_config.json").read_text())["kind"] == "elementwise"
    assert ImportanceMap.from_pretrained(tmp_path / "map") == importance


def test_its_checksum_still_counts(tmp_path: Path) -> None:
    shutil.copytree(MAPS / "adapter", tmp_path / "map")
    path = tmp_path / "map" / "importance_config.json"
    path.write_text(path.read_text().replace('"steps": 4', '"steps": 5'))
    with pytest.raises(ALoRAError, match="does not match its own checksum"):
        ImportanceMap.from_pretrained(tmp_path / "map")
