"""What cards, `alora inspect` and `alora search` say of importance in a basis."""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from alora_trainer import ALoRAConfig, ImportanceMap
from alora_trainer.artefact.cards.basis import CHOICES, HELD_BY, LLAMAS, model_bytes
from alora_trainer.artefact.hub.inspect import describe
from alora_trainer.artefact.hub.search import search_maps, table
from alora_trainer.cli.command_line import main, make_parser
from alora_trainer.experiment.methods.registry import METHODS
from alora_trainer.importance.kinds.formats import KINDS as REGISTERED
from alora_trainer.importance.kinds.formats import storage_format
from alora_trainer.importance.kinds.in_basis import InBasis
from tests.basis_map import KINDS, basis_map
from tests.tiny_map import make_map
from tests.tiny_recipe import write_all


@pytest.fixture(autouse=True)
def _undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `main` sets for its own process is no business of the other tests."""
    monkeypatch.setattr("alora_trainer.cli.command_line.configure_output", lambda: None)


def card_of(importance: ImportanceMap, folder: Path) -> str:
    importance.save_pretrained(folder)
    return (folder / "README.md").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_the_card_says_what_it_is_and_how_to_use_it(kind: str, tmp_path: Path) -> None:
    card = card_of(basis_map(kind), tmp_path)
    assert f"The kind is `{kind}`: `{REGISTERED.find(kind).formula}`" in card and f"- {kind}-importance" in card
    assert REGISTERED.find(kind).meaning in card
    assert ("5 directions of the outputs" in card) == (
        kind != "covariance"
    ) and "5 directions of the inputs, with " in card
    assert "no LoRA belongs to it" in card and 'importance="FOLDER_OR_HUB_ID"' in card and "PeftModel" not in card
    assert f"--method {HELD_BY[kind]} --importance" in card
    assert (
        "without any training; labels drawn from the model's own predictions" in card
        and "2 times for each batch" in card
    )
    assert "optimizer, learning rate" not in card and "{" + "{" not in card and "None" not in card
    (settings,) = re.findall(r"```yaml\n(.*?)```", card, re.DOTALL)
    # Strength is left to a budget, or to the kind's own where no text is watched.
    meant = replace(ALoRAConfig().meant_for(basis_map(kind)), lam=None)
    assert ALoRAConfig(**yaml.safe_load(settings)["alora"]) == meant  # what is understood is what is said


def test_every_kind_is_held_by_a_method() -> None:
    for kind, method in HELD_BY.items():
        assert METHODS[method].importance == kind
    bases = {kind for kind in REGISTERED if issubclass(storage_format_of(kind), InBasis)}
    assert set(HELD_BY) == bases


def storage_format_of(kind: str) -> Any:
    return storage_format(kind) if kind != "elementwise" else storage_format("float32")


def test_bytes_of_whole_models_are_those_of_their_layers() -> None:
    """Against sums written out: 3 072 wide, 28 blocks, keys and values of 1,024, and an MLP of 8,192."""
    three, eight = LLAMAS
    full, sixteen = storage_format("kronecker"), storage_format("kronecker_bfloat16")
    assert issubclass(full, InBasis) and issubclass(sixteen, InBasis)
    q_v = 28 * 4 * (3072**2 + 3073 + 3072**2 + 3073 + 1024**2 + 1025 + 3073)
    assert model_bytes(full, three, CHOICES["q, v"], None) == q_v
    k = 16
    outputs = 3072 + 1024 + 1024 + 3072 + 8192 + 8192 + 3072
    inputs = 3072 + 3072 + 3072 + 8192  # q, o, gate and down; k, v and up have another's
    vectors, values = 2 * k * (outputs + inputs), 4 * (k + 1) * 14
    assert model_bytes(sixteen, three, CHOICES["all linear layers"], k) == 28 * (vectors + values)
    assert eight.weights["down"][0] == (4096, 14336) and eight.blocks == 32


def test_the_size_of_this_map_and_of_others_is_in_the_card(tmp_path: Path) -> None:
    card = card_of(basis_map(keep=16), tmp_path)
    assert "(`kronecker`, 16 directions a side) it would take" in card
    format = storage_format("kronecker")
    assert issubclass(format, InBasis)
    size = model_bytes(format, LLAMAS[0], CHOICES["q, v"], 16)
    assert f"| Llama-3.2-3B | q, v | {size / 1e6:.1f} MB |" in card
    assert math.isclose(size, 28 * 4 * 16 * (3072 + 3072 + 1024), rel_tol=1e-2)
    assert len(re.findall(r"^\| Llama-3", card, re.MULTILINE)) == 4
    assert "Llama" not in card_of(make_map(), tmp_path / "elementwise").replace("tiny-llama", "")


def test_inspect_and_search_say_the_kind(hub: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    basis_map("ekfac").push_to_hub("tiny-org/curved")
    make_map().push_to_hub("tiny-org/flat")
    found = {one.repo_id: one for one in search_maps("tiny-org/tiny-llama")}
    assert found["tiny-org/curved"].kind == "ekfac" and found["tiny-org/flat"].kind == "elementwise"
    assert re.search(r"tiny-org/curved +ekfac +ekfac +3,072", table(list(found.values())))
    text = describe("tiny-org/curved")
    assert "kind          ekfac: R = sum_ij Omega_ij (U_i' D V_j)^2\n" in text
    assert "kept          5 directions of the outputs, with " in text
    assert "labels        drawn from the model's own predictions" in text
    assert "recorded      12 batches, 3,072 tokens, at the base weights" in text
    assert main(["search", "tiny-org/tiny-llama"]) == 0 and "ekfac" in capsys.readouterr().out
    assert "kind          elementwise\n" in describe("tiny-org/flat") and "kept" not in describe("tiny-org/flat")


def test_a_card_that_does_not_say_its_kind_is_known_by_its_tag(hub: Any) -> None:
    content = b"---\nbase_model: a/base\ntags: [importance-map, kronecker-importance]\n---\n"
    hub.store.add("model", "a/map", {"README.md": content})
    hub.store.add("model", "a/bare", {"README.md": b"---\nbase_model: a/base\ntags: [importance-map]\n---\n"})
    assert {one.repo_id: one.kind for one in search_maps("a/base")} == {"a/map": "kronecker", "a/bare": None}


def test_the_cards_code_runs_as_it_stands(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_all(tmp_path / "made").parent / "model"
    hub.store.add("model", "tiny-org/tiny-llama", {path.name: path.read_bytes() for path in folder.iterdir()})
    commit = hub.store.repos["model", "tiny-org/tiny-llama"].refs["main"]
    basis_map(base_revision=commit).push_to_hub("tiny-org/map")
    stored = hub.store.repos["model", "tiny-org/map"]
    card = stored.commits[stored.refs["main"]]["README.md"].content.decode()
    (tmp_path / "domain.jsonl").write_text('{"text": "one and two is three"}\n' * 4)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"<!-- python -->\n```python\n(.*?)```", card, re.DOTALL)
    ran: dict[str, Any] = {}
    exec(compile(code, "card", "exec"), ran)
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    assert ran["trainer"].alora.start == "bare" and ran["trainer"].given_importance.at_base
    assert any(bool(p.any()) for name, p in ran["model"].named_parameters() if "lora_B" in name)
    for line in re.findall(r"^alora .*$", card, re.MULTILINE):
        assert make_parser().parse_known_args(shlex.split(line)[1:])[0].command in line
        if not line.startswith("alora tune"):
            assert main(shlex.split(line)[1:]) == 0
    assert torch.equal(
        ImportanceMap.from_pretrained(tmp_path / "map")["model.layers.0.self_attn.v_proj"],
        basis_map()["model.layers.0.self_attn.v_proj"],
    )
