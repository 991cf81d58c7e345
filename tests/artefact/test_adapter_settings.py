"""adapter_config.json of a stranger: what may take for ever or cannot be is refused, and a change of what is adapted shows."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, PeftModel

from alora_trainer import ALoRAError, ImportanceMap
from alora_trainer.artefact import files
from alora_trainer.artefact.adapter_config import _earlier_digest, checked_adapter_config, settings_digest
from alora_trainer.artefact.adapter_patterns import is_literal_name, is_plain_pattern
from alora_trainer.artefact.reading import check_reference
from alora_trainer.weights.theta import AdapterTheta
from tests.tiny_map import change_config, make_map

CASES = Path(__file__).resolve().parents[1] / "cases" / "adapters"
REFUSED: dict[str, Any] = json.loads((CASES / "refused.json").read_text())
ACCEPTED: dict[str, Any] = json.loads((CASES / "accepted.json").read_text())


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original") / "map"
    make_map().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "map"))


def change_settings(folder: Path, changes: dict[str, Any], *, forged: bool) -> dict[str, Any]:
    """Change the adapter's configuration; `forged` gives the map the digest that it then needs."""
    path = folder / files.ADAPTER_CONFIG_FILE
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(settings))
    if forged:
        change_config(folder, lambda config: config["adapter"].update(settings_sha256=settings_digest(settings)))
    return dict(settings)


@pytest.mark.parametrize("case", REFUSED)
def test_refused(folder: Path, case: str) -> None:
    change_settings(folder, REFUSED[case]["changes"], forged=True)
    for read in (lambda: ImportanceMap.from_pretrained(folder), lambda: check_reference(folder)):
        with pytest.raises(ALoRAError, match=REFUSED[case]["message"]) as refusal:
            read()
        assert "\n" not in str(refusal.value) and files.ADAPTER_CONFIG_FILE in str(refusal.value)


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted_and_saved_again(folder: Path, tmp_path: Path, case: str) -> None:
    change_settings(folder, ACCEPTED[case], forged=True)
    importance = ImportanceMap.from_pretrained(folder)
    importance.save_pretrained(tmp_path / "again")
    assert ImportanceMap.from_pretrained(tmp_path / "again") == importance == make_map()


def test_plain_patterns_end_soon() -> None:
    """The worst that is let through, against a name made for it."""
    worst = r".*.*" + "(a|a|a|a|a|a|a|a|a|a)(a|a|a|a|a|a|a|a|a|a)(a|a|a|a|a)" + "x"
    assert is_plain_pattern(worst) and not is_plain_pattern(f".*{worst}") and not is_plain_pattern(f"(a|a){worst}")
    assert re.fullmatch(worst, "a" * 60) is None
    assert is_literal_name("model.layers.0") and is_literal_name(r"^a\.b") and not is_literal_name("a|b")


@pytest.mark.parametrize(
    "changes", [{"layers_to_transform": 0}, {"layers_to_transform": [0]}, {"layers_to_transform": [1]}]
)
def test_a_change_of_what_is_adapted_shows(folder: Path, changes: dict[str, Any]) -> None:
    settings = change_settings(folder, changes, forged=False)
    assert _earlier_digest(settings) != settings_digest(settings)
    with pytest.raises(ALoRAError, match="does not adapt model.layers|not the adapter's configuration"):
        ImportanceMap.from_pretrained(folder)
    change_settings(folder, {}, forged=True)
    with pytest.raises(ALoRAError, match="does not adapt model.layers.* whose importance the map has"):
        ImportanceMap.from_pretrained(folder)


UNLIKE: dict[str, tuple[Any, Any]] = {
    "layers_to_transform": (None, 0),
    "use_rslora": (False, True),
    "lora_alpha": (6, 6.5),
    "target_modules": ([], None),
    "init_lora_weights": (True, False),
    "a_later_setting": (False, 0),
}


@pytest.mark.parametrize("key", UNLIKE)
def test_digests_tell_values_apart(original: Path, key: str) -> None:
    settings = json.loads((original / files.ADAPTER_CONFIG_FILE).read_text())
    one, other = (settings | {key: value} for value in UNLIKE[key])
    assert settings_digest(one) != settings_digest(other)


def test_digests_are_of_what_is_said(original: Path) -> None:
    settings = json.loads((original / files.ADAPTER_CONFIG_FILE).read_text())
    less = {key: value for key, value in settings.items() if value not in (None, True) and key != "lora_dropout"}
    assert settings_digest(less) == settings_digest(settings) == settings_digest(settings | {"a_later_setting": None})
    names = {"q_proj": 3, "layers.0.self_attn.q_proj": 4}
    other = dict(reversed(names.items()))  # PEFT takes the first that fits
    assert settings_digest(settings | {"rank_pattern": names}) != settings_digest(settings | {"rank_pattern": other})


def test_a_digest_of_an_earlier_version_is_read_but_for_what_it_could_not_tell(folder: Path) -> None:
    path = folder / files.ADAPTER_CONFIG_FILE
    settings = json.loads(path.read_text())
    digest = _earlier_digest(settings)
    change_config(folder, lambda config: config["adapter"].update(settings_sha256=digest))
    assert ImportanceMap.from_pretrained(folder) == make_map()
    assert _earlier_digest(settings | {"layers_to_transform": 0}) is None


def test_patterns_of_ones_own_are_written_as_names(tmp_path: Path, _tiny_llama: Any) -> None:
    """What reading refuses from strangers is fine in a training: the map then says the same in names."""
    recorded = make_map()
    config = LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=r".*\.((q|v)_proj)+",
        rank_pattern={r".*?self.*?_attn.*?_proj": 3},
        alpha_pattern={r"(.*\.)*[qv]_proj": 6},
        task_type="CAUSAL_LM",
    )
    theta = AdapterTheta(recorded.theta, recorded.adapter_state, config)  # type: ignore[arg-type]
    recorded.with_omega({name: recorded.stored(name) for name in recorded}, theta=theta).save_pretrained(
        tmp_path / "map"
    )
    again = ImportanceMap.from_pretrained(tmp_path / "map")
    assert again == recorded and again.adapter_config.target_modules == set(recorded)
    model = PeftModel.from_pretrained(copy.deepcopy(_tiny_llama), str(tmp_path / "map"))
    layer = model.base_model.model.model.layers[1].self_attn.v_proj
    assert (layer.r, layer.scaling) == ({"default": 3}, {"default": 2.0})
    with pytest.raises(ALoRAError, match="take for ever"):
        checked_adapter_config(config.to_dict() | {"peft_type": "LORA"}, "adapter_config.json")
