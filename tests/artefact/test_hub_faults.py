"""What a bad line, a bad proxy and a Hub in trouble do: healed where it can be, and else told apart, in a line that helps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alora_trainer import ALoRAError, ImportanceMap
from alora_trainer.artefact import files
from alora_trainer.artefact.hub.download import fetch, pinned, pull
from alora_trainer.artefact.hub.inspect import describe
from alora_trainer.artefact.hub.search import search_maps
from alora_trainer.experiment.run.models import with_saved_adapter
from tests.tiny_map import make_map

REPO = "tiny-org/map"
BASE = "tiny-org/tiny-llama"


@pytest.fixture(scope="module")
def pushed() -> dict[str, bytes]:
    """Every file of a map that was pushed, by name: filled by the first test that needs it."""
    return {}


@pytest.fixture
def published(hub: Any, monkeypatch: pytest.MonkeyPatch, pushed: dict[str, bytes]) -> Any:
    """The Hub with a map on it, and nothing of it in the cache; its client does not wait before it tries again."""
    if pushed:
        hub.store.add("model", REPO, pushed)
    else:
        make_map().push_to_hub(REPO)
        stored = hub.store.repos["model", REPO]
        pushed.update({name: blob.content for name, blob in stored.commits[stored.refs["main"]].items()})
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    return hub


READS: dict[str, Callable[[Path], Any]] = {
    "from_pretrained": lambda folder: ImportanceMap.from_pretrained(REPO),
    "pull": lambda folder: pull(REPO, folder / "map"),
    "a part": lambda folder: pull(REPO, folder / "map", layers=[1], storage="log8"),
    "a recipe": lambda folder: pinned(REPO),
}


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("file", [files.OMEGA_FILE, files.ADAPTER_FILE, files.CONFIG_FILE, files.ADAPTER_CONFIG_FILE])
def test_a_flipped_bit_is_fetched_again(published: Any, tmp_path: Path, read: str, file: str) -> None:
    published.flips.add(file)
    READS[read](tmp_path)
    assert not published.flips
    assert ImportanceMap.from_pretrained(REPO) == make_map()
    sent = published.served[file]
    READS[read](tmp_path)
    assert published.served[file] == sent  # it is in the cache, as it was sent


def test_a_bit_that_flipped_in_the_cache_is_fetched_again_alone(published: Any) -> None:
    folder, _ = fetch(REPO)
    content = bytearray((folder / files.OMEGA_FILE).read_bytes())
    content[-1] ^= 1
    (folder / files.OMEGA_FILE).resolve().write_bytes(content)
    published.served.clear()
    assert ImportanceMap.from_pretrained(REPO) == make_map()
    assert set(published.served) == {files.OMEGA_FILE}


def test_what_is_damaged_on_the_hub_is_not_fetched_for_ever(published: Any) -> None:
    stored = published.store.repos["model", REPO]
    content = {name: blob.content for name, blob in stored.commits[stored.refs["main"]].items()}
    omega = bytearray(content[files.OMEGA_FILE])
    omega[-1] ^= 1
    published.store.add("model", "bob/damaged", content | {files.OMEGA_FILE: bytes(omega)})
    published.served.clear()
    with pytest.raises(ALoRAError, match="does not match its checksum"):
        ImportanceMap.from_pretrained("bob/damaged")
    assert published.served[files.OMEGA_FILE] == len(omega)  # once: it came as the Hub has it


def test_offline_the_damage_is_named(published: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    folder, _ = fetch(REPO)
    (folder / files.OMEGA_FILE).resolve().write_bytes(b"torn")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ALoRAError, match=r"importance.safetensors arrived damaged: the Hub cannot be reached"):
        ImportanceMap.from_pretrained(REPO)


@pytest.mark.parametrize("more", [7, -7])
@pytest.mark.parametrize("file", [files.OMEGA_FILE, files.CONFIG_FILE])
def test_a_body_of_another_length(published: Any, file: str, more: int) -> None:
    published.lengths[file] = more
    with pytest.raises(
        ALoRAError, match="what came is not as long as the Hub says .file should be of size .* run it again"
    ):
        ImportanceMap.from_pretrained(REPO)
    published.lengths.clear()
    assert ImportanceMap.from_pretrained(REPO) == make_map()


REFUSALS = {
    403: "the token that is set may not do that, or none is set .HTTP 403.: log in",
    429: "asked too often .HTTP 429.: wait 30 s, and run it again",
    500: "the Hub itself is in trouble .HTTP 500.: run it again later",
    503: "the Hub itself is in trouble .HTTP 503.: run it again later",
}
ASKED: dict[str, Callable[[], Any]] = {
    "fetched": lambda: ImportanceMap.from_pretrained(REPO),
    "inspected|fetched": lambda: describe(REPO),
    "searched for": lambda: search_maps(BASE),
    "published": lambda: make_map(values=1).push_to_hub(REPO),
}


@pytest.mark.parametrize("status", REFUSALS)
@pytest.mark.parametrize("asked", ASKED)
def test_refusals_are_told_apart(published: Any, asked: str, status: int) -> None:
    for address in (".", files.OMEGA_FILE) if asked == "fetched" else (".",):
        published.refusals = {address: (status, {"Retry-After": "30"})}
        with pytest.raises(ALoRAError, match=f"cannot be ({asked}): .*{REFUSALS[status]}") as refusal:
            ASKED[asked]()
        assert "cannot be reached" not in str(refusal.value) and "\n" not in str(refusal.value)
    published.refusals = {}
    ASKED[asked]()


@pytest.mark.parametrize("asked", ASKED)
def test_a_login_page_in_the_hubs_place(published: Any, asked: str) -> None:
    published.portal = b"<html>Welcome to our hotel</html>"
    with pytest.raises(ALoRAError, match="what answers in the Hub's place is none: a network's login page"):
        ASKED[asked]()


def test_a_full_disk_is_said(published: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **settings: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(ALoRAError, match="cannot be fetched: .*No space left on device"):
        ImportanceMap.from_pretrained(REPO)


def test_no_link_is_followed_out_of_a_folder(published: Any, tmp_path: Path) -> None:
    """From a folder that a stranger packed: neither the card nor the config nor the files are read from somewhere else."""
    make_map().save_pretrained(tmp_path / "map")
    for name in (files.CARD_FILE, files.CONFIG_FILE, files.LAYERS_FILE, files.ADAPTER_CONFIG_FILE):
        (tmp_path / "secret").unlink(missing_ok=True)
        shutil.move(tmp_path / "map" / name, tmp_path / "secret")
        (tmp_path / "map" / name).symlink_to(tmp_path / "secret")
        with pytest.raises(ALoRAError, match="outside of the importance map"):
            pull(str(tmp_path / "map"), tmp_path / "pulled")
        assert not (tmp_path / "pulled").exists()
        (tmp_path / "map" / name).unlink()
        shutil.move(tmp_path / "secret", tmp_path / "map" / name)


def test_nothing_is_written_through_a_link_in_the_target(published: Any, tmp_path: Path) -> None:
    (tmp_path / "users").write_text("mine")
    make_map(values=2).save_pretrained(tmp_path / "map")
    for name in (files.OMEGA_FILE, files.CARD_FILE, ".importance-map-partial"):
        (tmp_path / "map" / name).unlink(missing_ok=True)
        (tmp_path / "map" / name).symlink_to(tmp_path / "users")
    (tmp_path / "map" / "notes.txt").write_text("the folder holds other things, too")
    pull(REPO, tmp_path / "map")
    assert (tmp_path / "users").read_text() == "mine"
    assert ImportanceMap.from_pretrained(tmp_path / "map") == make_map()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"peft_type": "LORA", "target_modules": ".*" * 14 + "x"},
            "bob/adapter's adapter_config.json has the pattern .* for ever",
        ),
        ({"peft_type": "LORA", "rank_pattern": 5}, "has rank_pattern: 5, which cannot be"),
        (None, "bob/adapter holds no adapter: it has no adapter_config.json"),
    ],
    ids=["a pattern", "a number", "nothing"],
)
def test_an_adapter_on_the_hub_is_looked_at_before_peft_is_let_at_it(hub: Any, settings: Any, message: str) -> None:
    given = {} if settings is None else {files.ADAPTER_CONFIG_FILE: json.dumps(settings).encode()}
    hub.store.add("model", "bob/adapter", {"README.md": b"an adapter"} | given)
    with pytest.raises(ALoRAError, match=message):
        with_saved_adapter(None, "bob/adapter", trainable=False)  # type: ignore[arg-type]
