"""Somebody else's map: whatever was done to its files, it is the map that was written or an error that says what is wrong."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from alora_trainer import ALoRAError, ImportanceMap
from alora_trainer.artefact import files
from alora_trainer.artefact.hub.inspect import describe
from alora_trainer.artefact.reading import verify_map
from alora_trainer.basics.safetensors_writer import tensor_digest
from tests.tiny_map import change_config, make_map

Q0 = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original") / "map"
    make_map().save_pretrained(folder, storage=["float32", "log8", "factored"])
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "map"))


def forge(folder: Path, storage: str, part: str, change: Callable[[torch.Tensor], Any]) -> None:
    """Change a part of one weight's Omega, with all checksums and sizes right."""
    file = folder / files.omega_file(None if storage == "float32" else storage)
    tensors = load_file(file)
    key = f"{Q0}.{part}" if part else Q0
    change(tensors[key])
    save_file(tensors, file, metadata={"format": "pt"})

    def tell(config: dict[str, Any]) -> None:
        config["formats"][storage]["parts"][Q0][part]["sha256"] = tensor_digest(tensors[key])
        config["files"][file.name] = file.stat().st_size

    change_config(folder, tell)


def fill(value: float) -> Callable[[torch.Tensor], Any]:
    return lambda tensor: tensor.view(-1)[:1].fill_(value)


@pytest.mark.parametrize(
    ("storage", "part", "value", "message"),
    [
        ("float32", "", float("nan"), "NaN or infinite"),
        ("float32", "", float("inf"), "NaN or infinite"),
        ("float32", "", -1e-30, "negative"),
        ("float32", "", 1e30, "absurdly large"),
        ("log8", "scales", float("nan"), "absurd scales"),
        ("log8", "scales", 300.0, "absurd scales"),
        ("log8", "scales", -1e9, "absurd scales"),
        ("log8", "scales", 120.0, "absurdly large|NaN or infinite"),
        ("factored", "rows", -0.5, "negative"),
        ("factored", "columns", float("nan"), "NaN"),
        ("factored", "columns", 3e38, "absurdly large|infinite"),
    ],
)
def test_values_that_no_importance_has(folder: Path, storage: str, part: str, value: float, message: str) -> None:
    forge(folder, storage, part, fill(value))
    for read in (lambda: ImportanceMap.from_pretrained(folder, storage=storage), lambda: verify_map(folder)):
        with pytest.raises(ALoRAError, match=message):
            read()


def set_in(config: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split("/")
    for key in parents:
        config = config[key]
    config[last] = value


CONFIG_LIES: dict[str, tuple[str, Any, str]] = {
    "shape": (f"tensors/{Q0}/shape", [16, 17], "should be|do not make"),
    "huge shape": (f"tensors/{Q0}/shape", [1 << 40, 1 << 40], "a shape is no whole number"),
    "negative shape": (f"tensors/{Q0}/shape", [-16, 16], "a shape is no whole number"),
    "three sides": (f"tensors/{Q0}/shape", [16, 16, 1], "damaged"),
    "fractional side": (f"tensors/{Q0}/shape", [16.0, 16], "a shape is no whole number"),
    "scaling": (f"tensors/{Q0}/scaling", 0.0, "a scaling is absurd"),
    "scaling of text": (f"tensors/{Q0}/scaling", "much", "damaged"),
    "sample": (f"tensors/{Q0}/base_sample", [0.5] * 65, "sample of the base weights is absurd"),
    "file above": (f"formats/float32/parts/{Q0}//file", "../importance.safetensors", "another name"),
    "absolute file": (f"formats/float32/parts/{Q0}//file", "/etc/passwd", "another name"),
    "other file": (f"formats/float32/parts/{Q0}//file", "model.safetensors", "another name"),
    "unlisted file": (f"formats/float32/parts/{Q0}//file", "importance.none.safetensors", "not listed"),
    "dtype": (f"formats/float32/parts/{Q0}//dtype", "float64", "should be torch.float32"),
    "other key": (f"formats/float32/parts/{Q0}//key", "other", "other tensors"),
    "one tensor twice": (
        f"formats/float32/parts/{Q0}//key",
        "model.layers.0.self_attn.v_proj",
        "two parts are one tensor",
    ),
    "unknown format": ("storage", "int4", "first format"),
    "a further format": ("formats/int4", {}, "storage='int4' is unknown"),
    "parameters": ("formats/log8/parameters", {"block": 64}, "unknown parameters"),
    "files outside": ("files/..", 3, "none of an importance map"),
    "size": ("files/importance.safetensors", 5, "has 3,4.. bytes and should have 5"),
    "escape sequence": ("base_model", "\x1b[31mred", "a text is none"),
    "number for a text": ("optimizer", 5, "optimizer is a int"),
    "no steps": ("steps", None, "steps is a NoneType"),
    "nested text": ("data", {"sources": [{"hub": "\x07"}]}, "a text is none"),
    "components": (f"formats/factored/parts/{Q0}/rows/shape", [16, 5], "components"),
    "adapter shape": (f"adapter/tensors/base_model.model.{Q0}.lora_A.weight/shape", [3, 15], "is float32"),
    "adapter settings": ("adapter/settings_sha256", "0" * 64, "not the adapter's configuration"),
    "other adapter tensors": ("adapter/tensors", {}, "other tensors"),
    "schema": ("schema_version", 4, "update alora-trainer"),
}


@pytest.mark.parametrize("kind", CONFIG_LIES)
def test_a_config_that_lies(folder: Path, kind: str) -> None:
    path, value, message = CONFIG_LIES[kind]
    change_config(folder, lambda config: set_in(config, path, value))
    with pytest.raises(ALoRAError, match=message):
        verify_map(folder)


def test_a_config_changed_without_its_checksum(folder: Path) -> None:
    change_config(folder, lambda config: set_in(config, "xi", 0.5), honest=False)
    with pytest.raises(ALoRAError, match="does not match its own checksum"):
        ImportanceMap.from_pretrained(folder)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"schema_version": 2, "schema_version": 2}',
        '{"schema_version": NaN}',
        '{"xi": 1e999}',
        '{"xi": ' + "9" * 5000 + "}",
        "\x00",
        "null",
        "",
    ],
)
def test_json_that_is_none(folder: Path, text: str) -> None:
    (folder / files.CONFIG_FILE).write_text(text)
    with pytest.raises(ALoRAError):
        ImportanceMap.from_pretrained(folder)


def safetensors_bytes(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(encoded) if length is None else length).to_bytes(8, "little") + encoded + data


HEADERS = {
    "empty": b"",
    "length only": (1 << 40).to_bytes(8, "little"),
    "length beyond the file": safetensors_bytes(b"{}", length=100),
    "no JSON": safetensors_bytes(b"{{"),
    "a list": safetensors_bytes([]),
    "deep": safetensors_bytes(b'{"a":' * 50_000),
    "gap": safetensors_bytes({"a": {"dtype": "U8", "shape": [2], "data_offsets": [2, 4]}}, b"1234"),
    "overlap": safetensors_bytes(
        {
            "a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]},
            "b": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]},
        },
        b"123",
    ),
    "more than there is": safetensors_bytes(
        {"a": {"dtype": "F32", "shape": [1 << 30, 1 << 10], "data_offsets": [0, 1 << 42]}}, b"1234"
    ),
    "shape and bytes": safetensors_bytes({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234"),
    "negative": safetensors_bytes({"a": {"dtype": "U8", "shape": [-4], "data_offsets": [0, -4]}}, b""),
    "dtype": safetensors_bytes({"a": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}, b"12345678"),
    "dtype of no kind": safetensors_bytes({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
    "twice": safetensors_bytes(
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"1",
    ),
    "trailing bytes": safetensors_bytes({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"12"),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_headers_that_lie(folder: Path, kind: str) -> None:
    for file in (files.OMEGA_FILE, files.ADAPTER_FILE):
        path = folder / file
        right = path.read_bytes()
        path.write_bytes(HEADERS[kind])
        change_config(folder, lambda config, path=path: set_in(config, f"files/{path.name}", path.stat().st_size))
        with pytest.raises(ALoRAError, match="damaged"):
            verify_map(folder)
        path.write_bytes(right)


def test_a_huge_announced_tensor_allocates_nothing(folder: Path) -> None:
    """A sparse file of 64 GiB with a header that is right in itself: refused by its header, before a byte is read."""
    size = 1 << 36
    header = json.dumps({Q0: {"dtype": "F32", "shape": [1 << 17, 1 << 17], "data_offsets": [0, size]}}).encode()
    with (folder / files.OMEGA_FILE).open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    change_config(
        folder, lambda config: set_in(config, f"files/{files.OMEGA_FILE}", (folder / files.OMEGA_FILE).stat().st_size)
    )
    with pytest.raises(ALoRAError, match="holds other tensors"):
        ImportanceMap.from_pretrained(folder)


def test_links_out_of_the_folder(folder: Path, tmp_path: Path) -> None:
    for name in (files.OMEGA_FILE, files.ADAPTER_FILE, files.ADAPTER_CONFIG_FILE):
        outside = tmp_path / name
        shutil.move(folder / name, outside)
        (folder / name).symlink_to(outside)
        with pytest.raises(ALoRAError, match="outside of the importance map"):
            ImportanceMap.from_pretrained(folder)
        (folder / name).unlink()
        shutil.move(outside, folder / name)
    (folder / files.OMEGA_FILE).unlink()
    os.mkfifo(folder / files.OMEGA_FILE)  # reading one would hang
    with pytest.raises(ALoRAError, match="not whole"):
        ImportanceMap.from_pretrained(folder)


ADAPTER_LIES = {
    "another kind": ({"peft_type": "IA3"}, "type 'IA3'"),
    "a module to import": (
        {"auto_mapping": {"base_model_class": "x", "parent_library": "os"}},
        "imported .auto_mapping",
    ),
    "megatron": ({"megatron_config": {"a": 1}, "megatron_core": "os.path"}, "megatron"),
    "an endless pattern": ({"target_modules": "(a+)+$"}, "take for ever"),
    "an endless rank pattern": ({"rank_pattern": {"(x*)*y": 4}}, "take for ever"),
    "an unknown setting": ({"hypernetwork": "yes"}, "does not know ..hypernetwork"),
    "nonsense": ({"r": "many", "use_dora": {"a": []}}, "no configuration of a LoRA adapter|is not"),
}


@pytest.mark.parametrize("kind", ADAPTER_LIES)
def test_an_adapter_that_asks_for_more(folder: Path, kind: str) -> None:
    from alora_trainer.artefact.adapter_config import checked_adapter_config

    changes, message = ADAPTER_LIES[kind]
    settings = json.loads((folder / files.ADAPTER_CONFIG_FILE).read_text()) | changes
    if kind != "nonsense":
        with pytest.raises(ALoRAError, match=message):
            checked_adapter_config(settings, "adapter_config.json")
    (folder / files.ADAPTER_CONFIG_FILE).write_text(json.dumps(settings))
    with pytest.raises(ALoRAError):
        ImportanceMap.from_pretrained(folder)


def test_what_peft_writes_itself_is_no_change(folder: Path) -> None:
    """A Trainer copies PEFT's own adapter_config.json over ours: other order, other bookkeeping, the same adapter."""
    path = folder / files.ADAPTER_CONFIG_FILE
    settings = json.loads(path.read_text())
    settings["target_modules"].reverse()
    settings |= {"inference_mode": True, "base_model_name_or_path": "elsewhere", "a_newer_setting": None}
    settings["auto_mapping"] = {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers.models.llama"}
    path.write_text(json.dumps(settings, indent=1))
    assert ImportanceMap.from_pretrained(folder).adapter_config.auto_mapping is None
    settings["r"] = 4
    path.write_text(json.dumps(settings))
    with pytest.raises(ALoRAError, match="not the adapter's configuration"):
        ImportanceMap.from_pretrained(folder)


@pytest.mark.parametrize("seed", range(6))
def test_fuzz(original: Path, tmp_path: Path, seed: int) -> None:
    """Hundreds of random changes to the files, each of which must give the very same map or an ALoRAError."""
    chance = random.Random(seed)
    expected = ImportanceMap.from_pretrained(original)
    contents = {path.name: path.read_bytes() for path in original.iterdir() if path.suffix in (".json", ".safetensors")}
    folder = Path(shutil.copytree(original, tmp_path / "map"))
    outcomes = {"error": 0, "same": 0}
    for _ in range(150):
        name = chance.choice([n for n in sorted(contents) if n != files.LAYERS_FILE])
        (folder / name).write_bytes(mutated(contents[name], name, chance))
        outcomes[load_outcome(folder, expected)] += 1
        (folder / name).write_bytes(contents[name])
    assert outcomes["error"] > 90, outcomes


@pytest.mark.parametrize("seed", range(3))
def test_fuzz_by_a_forger(original: Path, tmp_path: Path, seed: int) -> None:
    """The config changed at random and given its right checksum: a map or an ALoRAError, and nothing else."""
    chance = random.Random(seed)
    folder = Path(shutil.copytree(original, tmp_path / "map"))
    right = (folder / files.CONFIG_FILE).read_text()
    refused = 0
    for _ in range(150):

        def change(config: dict[str, Any]) -> None:
            changed = json.loads(change_json(json.dumps(config).encode(), chance))
            config.clear()
            config.update(changed)

        change_config(folder, change)
        try:
            verify_map(folder)
            ImportanceMap.from_pretrained(folder, layers=[0], storage=chance.choice([None, "log8", "bfloat16"]))
            describe(str(folder))
        except ALoRAError:
            refused += 1
        (folder / files.CONFIG_FILE).write_text(right)
    assert refused > 75


def load_outcome(folder: Path, expected: ImportanceMap) -> str:
    try:
        verify_map(folder)
        found = ImportanceMap.from_pretrained(folder)
    except ALoRAError as error:
        assert 20 < len(str(error)) < 2000
        return "error"
    assert found.info == expected.info and found.base_samples == expected.base_samples
    assert list(found) == list(expected)
    for name in expected:
        assert torch.equal(found[name], expected[name])
        mine, other = found.reference[name], expected.reference[name]
        assert torch.equal(mine.a, other.a) and torch.equal(mine.b, other.b) and mine.scaling == other.scaling
    assert found.adapter_config.r == expected.adapter_config.r
    return "same"


def mutated(content: bytes, name: str, chance: random.Random) -> bytes:
    """A file's content after one random change: of bytes, of its JSON, or of its header's numbers."""
    kinds = [flip, cut, insert, swap] + ([change_json] * 4 if name.endswith(".json") else [change_header] * 4)
    return chance.choice(kinds)(content, chance)


def flip(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))]


def insert(content: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(content))
    return content[:place] + chance.randbytes(chance.randrange(1, 9)) + content[place:]


def swap(content: bytes, chance: random.Random) -> bytes:
    start, stop = sorted(chance.sample(range(len(content)), 2))
    middle = (start + stop) // 2
    return content[:start] + content[middle:stop] + content[start:middle] + content[stop:]


STRANGE = (None, True, -1, 0, 1 << 70, 1.5, "", "../x", "\x00", [], {}, [[]], "float64", "x" * 3000, -0.0)


def change_json(content: bytes, chance: random.Random) -> bytes:
    value = json.loads(content)
    place: Any = value
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = chance.choice(list(keys))
        if not isinstance(place[key], (dict, list)) or not place[key] or chance.random() < 0.15:
            break
        place = place[key]
    what = chance.randrange(3)
    if what == 0:
        del place[key]
    elif what == 1 and isinstance(place, dict):
        place[str(key) + "x"] = place.pop(key)
    else:
        place[key] = chance.choice(STRANGE)
    return json.dumps(value).encode()


def change_header(content: bytes, chance: random.Random) -> bytes:
    length = int.from_bytes(content[:8], "little")
    if chance.random() < 0.2:
        return chance.choice([0, 1, length - 1, length + 1, 1 << 32, (1 << 64) - 1]).to_bytes(8, "little") + content[8:]
    header = change_json(content[8 : 8 + length], chance)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def test_nothing_of_ours_turns_remote_code_on() -> None:
    package = Path(files.__file__).parent.parent
    for path in package.rglob("*.py"):
        assert "trust_remote_code" not in path.read_text(encoding="utf-8"), path
        assert not any(word in path.read_text(encoding="utf-8") for word in ("torch.load(", "pickle.load")), path
