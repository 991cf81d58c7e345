"""Round trips against a Hub on this machine, with the real client and the real `hf` command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from alora_trainer import ALoRAError, ImportanceMap
from alora_trainer.artefact.files import CONFIG_FILE, OMEGA_FILE
from alora_trainer.cli.command_line import main
from tests.conftest import ANN, BOB
from tests.older_libraries import before
from tests.tiny_map import make_map

REPO = "tiny-org/map"
HF = Path(sys.executable).parent / "hf"


@pytest.fixture(autouse=True)
def _undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `main` sets for its own process is no business of the other tests."""
    monkeypatch.setattr("alora_trainer.cli.command_line.configure_output", lambda: None)


def same(one: ImportanceMap, other: ImportanceMap) -> bool:
    return list(one) == list(other) and all(
        torch.equal(one[name], other[name]) and torch.equal(one.reference[name].b, other.reference[name].b)
        for name in one
    )


def files_of(hub: Any, repo: str = REPO, branch: str = "main") -> dict[str, bytes]:
    stored = hub.store.repos["model", repo]
    return {name: blob.content for name, blob in stored.commits[stored.refs[branch]].items()}


def test_push_and_from_pretrained_at_revisions(hub: Any) -> None:
    first, second = make_map(), make_map(values=5)
    url = first.push_to_hub(REPO)
    commit = url.rpartition("/")[2]
    second.push_to_hub(REPO, commit_message="again")
    assert same(ImportanceMap.from_pretrained(REPO), second)
    old = ImportanceMap.from_pretrained(REPO, revision=commit)
    assert same(old, first)
    assert (old.origin.repo_id, old.origin.commit) == (REPO, commit)  # type: ignore[union-attr]
    assert same(ImportanceMap.from_pretrained(f"{REPO}@{commit}"), first)
    stored = hub.store.repos["model", REPO]
    assert list(stored.messages.values())[1:] == ["Add an importance map for tiny-org/tiny-llama", "again"]
    assert hub.requests.count("POST /api/validate-yaml") == 2  # the Hub has looked at both cards
    assert ".gitattributes" in files_of(hub) and CONFIG_FILE in files_of(hub)
    with pytest.raises(ALoRAError, match="has no revision nowhere"):
        ImportanceMap.from_pretrained(REPO, revision="nowhere")
    with pytest.raises(ALoRAError, match="names the revision"):
        ImportanceMap.from_pretrained(f"{REPO}@{commit}", revision="main")


def test_a_branch_of_its_own(hub: Any) -> None:
    make_map().push_to_hub(REPO)
    make_map(values=5).push_to_hub(REPO, revision="v2", private=True)
    assert same(ImportanceMap.from_pretrained(REPO), make_map())
    assert same(ImportanceMap.from_pretrained(REPO, revision="v2"), make_map(values=5))


def test_a_new_map_takes_the_files_of_the_old_one_away(hub: Any) -> None:
    make_map().push_to_hub(REPO, max_shard_bytes=1600, storage=["float32", "log8"])
    assert {name for name in files_of(hub) if name.startswith("importance")} == {
        "importance-00001-of-00002.safetensors",
        "importance-00002-of-00002.safetensors",
        "importance.log8.safetensors",
        "importance.safetensors.index.json",
        CONFIG_FILE,
    }
    make_map().push_to_hub(REPO)
    assert {name for name in files_of(hub) if name.startswith("importance")} == {OMEGA_FILE, CONFIG_FILE}


def test_only_the_needed_files_are_fetched(hub: Any) -> None:
    whole = make_map(blocks=4)
    whole.push_to_hub(REPO, storage=["float32", "log8"], max_shard_bytes=1600)
    hub.served.clear()
    part = ImportanceMap.from_pretrained(REPO, layers=[1, "model.layers.2.*.v_proj"])
    assert list(part) == [f"model.layers.{name}_proj" for name in ("1.self_attn.q", "1.self_attn.v", "2.self_attn.v")]
    assert all(torch.equal(part[name], whole[name]) for name in part)
    fetched = set(hub.served)
    assert {name for name in fetched if name.startswith("importance-")} == {
        "importance-00002-of-00004.safetensors",
        "importance-00003-of-00004.safetensors",
    }
    assert not any("log8" in name or name.endswith((".png", ".md")) for name in fetched)
    hub.served.clear()
    small = ImportanceMap.from_pretrained(REPO, storage="log8")
    assert small.storage == "log8" and same(small, whole.convert("log8"))
    assert {name for name in hub.served if "importance" in name} == {
        f"importance.log8-0000{shard}-of-00002.safetensors" for shard in (1, 2)
    }  # and the rest was in the cache
    hub.served.clear()
    converted = ImportanceMap.from_pretrained(REPO, storage="bfloat16", layers=[1])
    assert converted.storage == "bfloat16" and not hub.served


def test_a_part_is_an_adapter_of_that_part(hub: Any, _tiny_llama: Any, tmp_path: Path) -> None:
    import copy

    from peft import PeftModel

    make_map().push_to_hub(REPO)
    assert main(["pull", REPO, "--layers", "1", "--output_dir", str(tmp_path / "part")]) == 0
    model = PeftModel.from_pretrained(copy.deepcopy(_tiny_llama), str(tmp_path / "part"), is_trainable=True)
    names = [weight.name for weight in ImportanceMap.from_pretrained(tmp_path / "part").check_model(model)]
    assert names == ["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]
    with pytest.raises(ALoRAError, match="no layer 7: its blocks are 0 to 1"):
        ImportanceMap.from_pretrained(REPO, layers=[7])


def test_offline_it_comes_from_the_cache(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    make_map(blocks=4).push_to_hub(REPO, max_shard_bytes=1600)
    ImportanceMap.from_pretrained(REPO, layers=[0])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert len(ImportanceMap.from_pretrained(REPO, layers=[0])) == 2
    # Of a copy in part, huggingface_hub before 2 gives what there is.
    missing = (
        "is not whole: .* is missing"
        if before("huggingface_hub", "2.0")
        else "the Hub cannot be reached.*HF_HUB_OFFLINE"
    )
    with pytest.raises(ALoRAError, match=missing):
        ImportanceMap.from_pretrained(REPO)
    with pytest.raises(ALoRAError, match="the Hub cannot be reached"):
        ImportanceMap.from_pretrained("tiny-org/never-seen")
    assert not hub.requests


def test_a_download_that_was_cut_off_goes_on(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_map(blocks=8)
    whole.push_to_hub(REPO)
    size = len(files_of(hub)[OMEGA_FILE])
    hub.served.clear()
    hub.faults[OMEGA_FILE] = 5000
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    assert same(ImportanceMap.from_pretrained(REPO), whole)
    assert hub.served[OMEGA_FILE] == size  # what had arrived was not sent again


def test_an_interrupted_download_leaves_nothing_that_loads(
    hub: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub.file_download as client

    make_map(blocks=8).push_to_hub(REPO)
    hub.faults[OMEGA_FILE] = 5000

    def die(seconds: float) -> None:
        raise KeyboardInterrupt  # the client waits before it tries again

    monkeypatch.setattr(client.time, "sleep", die)
    with pytest.raises(KeyboardInterrupt):
        main_raising(["pull", REPO, "--output_dir", str(tmp_path / "map")])
    monkeypatch.undo()
    assert not (tmp_path / "map").exists()
    snapshot = next((tmp_path / "hub-cache" / "models--tiny-org--map" / "snapshots").iterdir())
    with pytest.raises(ALoRAError, match="not whole"):
        ImportanceMap.from_pretrained(snapshot)


def main_raising(arguments: list[str]) -> None:
    """The command without its own handling of interrupts."""
    from alora_trainer.cli.command_line import make_parser

    parsed = make_parser().parse_args(arguments)
    parsed.execute(parsed, {})


def test_an_interrupted_push_leaves_the_old_map_and_goes_on(
    hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = make_map(blocks=6), make_map(blocks=6, values=5)
    old.push_to_hub(REPO)
    before = files_of(hub)
    new.save_pretrained(tmp_path / "map", max_shard_bytes=3300)
    hub.received.clear()
    hub.upload_fault = 2  # the first two objects arrive
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    assert main(["push", str(tmp_path / "map"), REPO]) == 2
    assert "run it again: what has arrived is not" in capsys.readouterr().err
    arrived = dict(hub.received)
    assert len(arrived) == 2
    assert files_of(hub) == before and same(ImportanceMap.from_pretrained(REPO), old)
    hub.upload_fault = None
    assert main(["push", str(tmp_path / "map"), REPO]) == 0
    assert {oid: hub.received[oid] for oid in arrived} == arrived and len(hub.received) > 2
    assert same(ImportanceMap.from_pretrained(REPO), new)


def test_who_may_not(hub: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    make_map().push_to_hub(REPO, private=True)
    assert same(ImportanceMap.from_pretrained(REPO), make_map())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", os.environ["HF_HUB_CACHE"] + "-of-a-stranger")
    for token in (None, BOB):
        if token is None:
            monkeypatch.delenv("HF_TOKEN")
            with pytest.raises(ALoRAError, match=f"{REPO} cannot be published: no token is set. Log in"):
                make_map().push_to_hub(REPO)
        else:
            monkeypatch.setenv("HF_TOKEN", token)
        for command in (["inspect", REPO], ["pull", REPO]):
            assert main(command) == 2
            error = capsys.readouterr().err
            assert f"{REPO} cannot be fetched" in error and "hf auth login" in error and "hf_token" not in error
    with pytest.raises(ALoRAError, match="the token that is set may not do that"):
        make_map().push_to_hub(REPO, token=BOB)
    assert same(ImportanceMap.from_pretrained(REPO, token=ANN), make_map())


def test_a_repository_that_is_no_map(hub: Any, capsys: pytest.CaptureFixture[str]) -> None:
    hub.store.add("model", "tiny-org/other", {"config.json": b"{}", "model.safetensors": b"x"})
    for command in (["pull", "tiny-org/other"], ["inspect", "tiny-org/other"]):
        assert main(command) == 2
        assert "tiny-org/other is no importance map: it has no importance_config.json" in capsys.readouterr().err
    assert main(["pull", "tiny-org/none"]) == 2
    assert "the Hub gives no such repository" in capsys.readouterr().err
    assert "model.safetensors" not in hub.served


def test_the_commands(hub: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_map().save_pretrained(tmp_path / "map")
    assert main(["push", str(tmp_path / "map"), REPO, "--storage", "float32,log8", "--license", "mit"]) == 0
    assert "/commit/" in capsys.readouterr().out
    assert main(["pull", REPO, "--storage", "log8", "--output_dir", str(tmp_path / "small")]) == 0
    assert not (tmp_path / "small" / OMEGA_FILE).exists()
    assert same(ImportanceMap.from_pretrained(tmp_path / "small"), make_map().convert("log8"))
    assert (tmp_path / "small" / "README.md").read_bytes() == files_of(hub)["README.md"]
    assert main(["pull", REPO]) == 0
    cached = Path(capsys.readouterr().out.splitlines()[-1].removeprefix("importance map: "))
    assert same(ImportanceMap.from_pretrained(cached), make_map())
    assert ImportanceMap.from_pretrained(cached).origin.repo_id == REPO  # type: ignore[union-attr]
    commit = hub.store.repos["model", REPO].refs["main"]
    hub.served.clear()
    assert main(["inspect", REPO]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{REPO}@{commit}\nbase model    tiny-org/tiny-llama, revision 0123456789abcdef")
    assert "weights       4 (q_proj, v_proj, blocks 0 to 1), 768 elements" in printed
    assert "formats       float32 3.48 kB in 1 file, log8" in printed and "licence       mit" in printed
    assert main(["inspect", str(tmp_path / "map")]) == 0


def test_inspecting_a_large_map_fetches_its_headers_alone(hub: Any, capsys: pytest.CaptureFixture[str]) -> None:
    make_map(blocks=120).push_to_hub(REPO)
    hub.served.clear()
    assert main(["inspect", REPO]) == 0
    assert "blocks 0 to 119" in capsys.readouterr().out
    assert hub.served[OMEGA_FILE] <= 100_001 < len(files_of(hub)[OMEGA_FILE])


def test_the_collection_for_a_base_model(hub: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "tiny-org/tiny-llama"]) == 0
    assert "no public importance map for tiny-org/tiny-llama" in capsys.readouterr().out
    make_map().push_to_hub(REPO, storage=["log8", "float32"])
    make_map().push_to_hub("ann/mine", storage="log8")
    make_map().push_to_hub("ann/hidden", private=True)
    make_map(base_model="tiny-org/other").push_to_hub("ann/other-base")
    hub.store.add("model", "ann/adapter", {"README.md": b"---\nbase_model: tiny-org/tiny-llama\ntags: [alora]\n---\n"})
    strange = b"---\nbase_model: tiny-org/tiny-llama\ntags: [importance-map]\nimportance_map: {formats: 3}\n---\n"
    hub.store.add("model", "bob/strange", {"README.md": strange})
    os.environ.pop("HF_TOKEN")
    assert main(["search", "tiny-org/tiny-llama"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["ann/mine", "bob/strange", REPO]
    assert "float32 3.48 kB, log8 " in lines[3] and "tiny-org/books" in lines[3] and "12,800" in lines[3]
    assert "not stated" in lines[2]
    assert lines[-1] == "alora tune RECIPE.yaml --method alora --importance ann/mine"


@pytest.mark.skipif(not HF.is_file(), reason="huggingface_hub's `hf` command is not installed beside this Python")
def test_the_hf_command(hub: Any, tmp_path: Path) -> None:
    """`hf` as a person calls it, in a process of its own: upload, download (some files of it), delete."""

    def hf(*arguments: str | Path, token: str = ANN) -> subprocess.CompletedProcess[str]:
        environment = os.environ | hub.environment(tmp_path / "home", token)
        environment["HF_HUB_CACHE"] = str(tmp_path / "hf-cache")
        command = [str(HF), *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)

    whole = make_map()
    whole.save_pretrained(tmp_path / "map", storage=["float32", "log8"])
    done = hf("upload", REPO, tmp_path / "map", ".")
    assert done.returncode == 0, done.stderr
    assert same(ImportanceMap.from_pretrained(REPO), whole)
    done = hf("download", REPO, "--local-dir", tmp_path / "here")
    assert done.returncode == 0, done.stderr
    assert same(ImportanceMap.from_pretrained(tmp_path / "here"), whole)
    assert same(ImportanceMap.from_pretrained(tmp_path / "here", storage="log8"), whole.convert("log8"))
    done = hf("repos", "delete", REPO, "--yes")
    assert done.returncode == 0, done.stderr
    assert not hub.store.repos


def test_nothing_published_names_this_machine_or_a_token(hub: Any, tmp_path: Path) -> None:
    private = make_map(
        base_model=str(tmp_path / "secret-folder" / "llama"),
        data={"sources": [{"path": str(tmp_path / "texts.jsonl")}]},
    )
    private.adapter_config.base_model_name_or_path = str(tmp_path / "secret-folder" / "llama")
    private.save_pretrained(tmp_path / "map")
    assert main(["push", str(tmp_path / "map"), REPO]) == 0
    for name, content in files_of(hub).items():
        assert str(tmp_path).encode() not in content and b"secret-folder" not in content, name
        assert ANN.encode() not in content, name
    card = files_of(hub)["README.md"].decode()
    assert "base_model:" not in card and "Importance map for llama" in card
    assert main(["push", str(tmp_path / "map"), REPO, "--base_model", "tiny-org/tiny-llama"]) == 0
    assert "base_model: tiny-org/tiny-llama" in files_of(hub)["README.md"].decode()
    assert json.loads(files_of(hub)["adapter_config.json"])["base_model_name_or_path"] == "tiny-org/tiny-llama"
    assert ImportanceMap.from_pretrained(REPO).info.base_model == "tiny-org/tiny-llama"


def test_what_cannot_be_pushed(hub: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    make_map().save_pretrained(tmp_path / "damaged")
    content = bytearray((tmp_path / "damaged" / OMEGA_FILE).read_bytes())
    content[-1] ^= 1
    (tmp_path / "damaged" / OMEGA_FILE).write_bytes(content)
    for folder, message in (
        ("none", "there is no folder"),
        ("empty", "holds neither an importance map"),
        ("damaged", "does not match its checksum"),
    ):
        assert main(["push", str(tmp_path / folder), REPO]) == 2
        assert message in capsys.readouterr().err
    assert not hub.store.repos
    make_map().save_pretrained(tmp_path / "map")
    assert main(["push", str(tmp_path / "map"), REPO, "--license", "mine"]) == 2
    assert 'the Hub refuses the card (- "license" must be one of a list' in capsys.readouterr().err
    assert CONFIG_FILE not in files_of(hub)
