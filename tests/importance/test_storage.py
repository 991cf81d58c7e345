"""Storage formats of Omega: what they lose, what they weigh, and that files of them stream, shard and check."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alora_trainer import ALoRAConfig, ALoRAError, ALoRATrainer, ImportanceMap
from alora_trainer.basics.safetensors_writer import tensor_digest, write_tensors
from alora_trainer.importance.kinds.factored import factorize
from alora_trainer.importance.kinds.formats import store
from alora_trainer.importance.kinds.logarithmic import QUANTIZATION_BLOCK, LogarithmicOmega
from tests.tiny_map import ELEMENTWISE_FORMATS


def heavy_tailed(m: int, n: int, seed: int = 0, octaves: float = 4.0) -> torch.Tensor:
    """Half zeros, the rest spread over many orders of magnitude, as importance is."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.exp2(torch.randn(m, n, generator=generator) * octaves)
    return values * (torch.rand(m, n, generator=generator) < 0.5)


@settings(max_examples=40, deadline=None)
@given(
    m=st.integers(1, 20), n=st.integers(1, 300), seed=st.integers(0, 2**31), octaves=st.floats(0.0, 6.0),
    scale=st.floats(-60, 60),
)  # fmt: skip
def test_logarithmic_storage_keeps_its_promised_error(m, n, seed, octaves, scale):
    omega = heavy_tailed(m, n, seed, octaves) * 2.0**scale
    stored = LogarithmicOmega.encode(omega)
    decoded = stored.dense()
    assert torch.equal(decoded == 0, omega == 0)
    for start in range(0, n, QUANTIZATION_BLOCK):
        block = omega[:, start : start + QUANTIZATION_BLOCK]
        logs = torch.log2(block.double()).masked_fill(block == 0, torch.nan)
        high = logs.nan_to_num(nan=-torch.inf).amax(1, keepdim=True)
        low = logs.nan_to_num(nan=torch.inf).amin(1, keepdim=True)
        allowed = torch.exp2((high - low).clamp_min(0) / 508) - 1 + 2e-5
        error = (decoded[:, start : start + QUANTIZATION_BLOCK].double() / block.double() - 1).abs().nan_to_num(nan=0.0)
        assert bool((error <= allowed.nan_to_num(nan=1.0)).all())


def test_all_formats_give_blocks_of_rows_of_the_whole():
    omega = heavy_tailed(37, 300)
    for name in ELEMENTWISE_FORMATS:
        stored = store(omega, name)
        whole = stored.dense()
        assert whole.shape == omega.shape
        for rows in (slice(0, 5), slice(5, 37)):
            torch.testing.assert_close(stored.rows(rows, torch.float32), whole[rows].float(), rtol=1e-5, atol=1e-7)
        measure = stored.measure()
        assert measure.trace == pytest.approx(float(whole.double().sum()), rel=1e-5)
        assert measure.norm == pytest.approx(float(whole.double().square().sum()) ** 0.5, rel=1e-5)
        assert measure.least == pytest.approx(float(whole.min()), abs=1e-6) and measure.least >= 0
    bytes_of = {name: store(omega, name).nbytes / omega.numel() for name in ELEMENTWISE_FORMATS}
    assert bytes_of["float32"] == 4 and bytes_of["bfloat16"] == 2 and bytes_of["factored"] < 0.6
    assert bytes_of["log8"] < 1.1
    with pytest.raises(ALoRAError, match="storage='int4' is unknown"):
        store(omega, "int4")


def test_factorisation_recovers_a_matrix_of_its_own_form_and_keeps_sums():
    generator = torch.Generator().manual_seed(1)
    x, y = torch.rand(40, 2, generator=generator) ** 4, torch.rand(60, 2, generator=generator) ** 4
    own = x @ y.T
    fitted_x, fitted_y = factorize(own, 2, 400)
    assert float((fitted_x @ fitted_y.T - own).norm() / own.norm()) < 0.02
    omega = heavy_tailed(40, 60)
    for components in (1, 3):
        fitted_x, fitted_y = factorize(omega, components, 50)
        fitted = fitted_x @ fitted_y.T
        assert bool((fitted >= 0).all())
        torch.testing.assert_close(fitted.sum(1), omega.sum(1), rtol=2e-2, atol=1e-3)
    one = torch.outer(omega.sum(1), omega.sum(0)) / omega.sum()
    torch.testing.assert_close(torch.matmul(*(f if i == 0 else f.T for i, f in enumerate(factorize(omega, 1, 1)))), one)
    assert float(factorize(torch.zeros(3, 4), 2, 5)[0].abs().sum()) == 0


@pytest.fixture
def importance(lora_model, token_data, training_arguments):
    trainer = ALoRATrainer(
        lora_model(), training_arguments(), train_dataset=token_data(), alora=ALoRAConfig(record="path")
    )
    trainer.train()
    return trainer.importance


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "log8", "factored"])
def test_maps_in_every_format_are_saved_sharded_and_read_back(importance, storage, tmp_path):
    converted = importance.convert(storage)
    importance.save_pretrained(tmp_path / "on_save", storage=storage)
    converted.save_pretrained(tmp_path / "before")
    converted.save_pretrained(tmp_path / "sharded", max_shard_bytes=600)
    assert len(list((tmp_path / "sharded").glob("importance-*.safetensors"))) > 1
    index = json.loads((tmp_path / "sharded" / "importance.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {
        p.name for p in (tmp_path / "sharded").glob("importance-*.safetensors")
    }
    for folder in ("on_save", "before", "sharded"):
        again = ImportanceMap.from_pretrained(tmp_path / folder)
        assert again.storage == storage and again.nbytes == converted.nbytes
        for name in importance:
            assert torch.equal(again[name], converted[name])
    importance.save_pretrained(tmp_path / "full")
    on_load = ImportanceMap.from_pretrained(tmp_path / "full", storage=storage)
    assert on_load.storage == storage
    for name in importance:
        torch.testing.assert_close(on_load[name], converted[name])


def test_saving_one_file_over_shards_leaves_no_shard(importance, tmp_path):
    (tmp_path / "map").mkdir()
    (tmp_path / "map" / "notes.txt").write_text("mine")
    importance.save_pretrained(tmp_path / "map", max_shard_bytes=600)
    importance.save_pretrained(tmp_path / "map")
    assert [p.name for p in (tmp_path / "map").glob("importance*.safetensors")] == ["importance.safetensors"]
    assert not (tmp_path / "map" / "importance.safetensors.index.json").exists()
    ImportanceMap.from_pretrained(tmp_path / "map")


def test_the_stream_writer_writes_what_safetensors_reads(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import load_file

    tensors = {
        "odd": torch.arange(7, dtype=torch.uint8),
        "half": torch.randn(3, 5).bfloat16(),
        "double": torch.randn(2, 2, dtype=torch.float64),
        "transposed": torch.randn(4, 6).T,
        "empty": torch.zeros(0, 3),
    }
    write_tensors(tmp_path / "file.safetensors", tensors, {"key": "value"})
    again = load_file(tmp_path / "file.safetensors")
    assert set(again) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(again[name], tensor) and again[name].dtype == tensor.dtype
        assert tensor_digest(again[name]) == tensor_digest(tensor)
    with safe_open(tmp_path / "file.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "key": "value"}


def test_saving_and_loading_hold_no_second_map(tmp_path):
    """Peak memory beyond the map stays under two tensors: measured on a map of eight tensors in a process of its own."""
    import subprocess
    import sys

    script = """
import sys, torch
from pathlib import Path
from peft import LoraConfig
from alora_trainer import ImportanceMap
from alora_trainer.weights.reference import Reference
from alora_trainer.weights.theta import AdapterTheta

def high_water():
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith("VmHWM"))

def reset():
    open("/proc/self/clear_refs", "w").write("5")

m, n, count = 2048, 4096, 8
names = [f"layer.{i}" for i in range(count)]
reference = {k: Reference(torch.zeros(1, n), torch.zeros(m, 1), 1.0) for k in names}
state = {f"base_model.model.{k}.lora_{f}.weight": getattr(r, f.lower()) for k, r in reference.items() for f in "AB"}
theta = AdapterTheta(reference, state, LoraConfig(target_modules=names))
make = lambda: ImportanceMap({k: torch.rand(m, n) for k in names}, theta)
importance = make()
importance.save_pretrained(sys.argv[1] + "/warm")
del importance
importance = make()
tensor = m * n * 4
for storage in ("float32", "log8"):
    reset(); before = high_water()
    importance.save_pretrained(sys.argv[1] + "/" + storage, storage=storage)
    print("save", storage, (high_water() - before) / tensor)
del importance
reset(); before = high_water()
loaded = ImportanceMap.from_pretrained(sys.argv[1] + "/float32")
print("load", "float32", (high_water() - before) / tensor - count)
"""
    try:
        with open("/proc/self/clear_refs", "w"):
            pass
    except OSError:
        pytest.skip("this system does not tell a process's peak memory")
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    beyond = {tuple(line.split()[:2]): float(line.split()[2]) for line in done.stdout.splitlines()}
    assert len(beyond) == 3
    assert max(beyond.values()) < 2.0, beyond
