"""Two gloo processes against one process with the doubled batch: maps, trajectories, sharing, resume, divergence, sharded
parameters in a loop of one's own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alora_trainer.artefact.config_file import read_config
from tests.launching import launch_two
from tests.older_libraries import goes_on_in_several_cpu_processes
from tests.penalty.test_penalty import dense_penalty
from tests.process_cases import (
    PROTECTED,
    READ,
    RECORDED,
    build,
    logged,
    protected_trainer,
    recorded_trainer,
    reference_map,
    trained,
)
from tests.tiny_training import move_factors, token_rows


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where two processes have left their outcomes."""
    goes_on_in_several_cpu_processes()
    folder = tmp_path_factory.mktemp("two")
    launch_two("processes_worker.py", str(folder))
    return folder


def facts(folder: Path, rank: int) -> dict[str, Any]:
    return dict(json.loads((folder / f"facts-{rank}.json").read_text()))


def tensors(folder: Path, name: str, rank: int) -> dict[str, torch.Tensor]:
    return load_file(folder / f"{name}-{rank}.safetensors")


def assert_alike(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        error = (got[name].double() - tensor.double()).norm() / (tensor.double().norm() + 1e-12)
        assert float(error) < tolerance, (name, float(error))


@pytest.mark.parametrize("name", RECORDED)
def test_recording_equals_one_process_with_the_doubled_batch(two, tmp_path, name):
    trainer = recorded_trainer(name, tmp_path, batch=4)
    assert trainer.args.world_size == 1
    trainer.train()
    expected = dict(trainer.importance) | trained(trainer)
    assert all(float(omega.max()) > 0 for omega in trainer.importance.values())
    for rank in (0, 1):
        assert_alike(tensors(two, f"record {name}", rank), expected, 1e-3)
        info = facts(two, rank)[f"record {name}"]
        assert info == {"tokens": trainer.importance.info.tokens, "steps": trainer.importance.info.steps}


def test_importance_is_shared_out(two):
    """Each process integrates and holds its own weights only; together they hold all, about half each."""
    here = [facts(two, rank) for rank in (0, 1)]
    for kind in ("integrated here", "held here"):
        assert not set(here[0][kind]) & set(here[1][kind])
        assert sorted(here[0][kind] + here[1][kind]) == sorted(reference_map(build()))
    whole = here[0]["bytes of all"]
    assert here[0]["bytes here"] + here[1]["bytes here"] == whole
    assert max(fact["bytes here"] for fact in here) <= 0.6 * whole


@pytest.mark.parametrize("name", PROTECTED)
def test_protecting_follows_the_trajectory_of_one_process(two, tmp_path, name):
    trainer = protected_trainer(name, tmp_path, batch=4)
    assert trainer.args.world_size == 1
    trainer.train()
    lines = logged(trainer)
    assert any(line.get("penalty", 0) > 0 for line in lines)
    for rank in (0, 1):
        assert_alike(tensors(two, f"protect {name}", rank), trained(trainer), 1e-4)
        for got, line in zip(facts(two, rank)[f"protect {name}"], lines, strict=True):
            assert got.keys() == line.keys()
            for key, value in line.items():
                assert got[key] == pytest.approx(value, rel=2e-4, abs=1e-6), (key, line["step"])
    # The processes themselves must not drift apart by a bit.
    one, other = (tensors(two, f"protect {name}", rank) for rank in (0, 1))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", READ)
def test_each_process_reads_its_share_of_a_map(two, name):
    """Every tensor of importance is read once, by the process that holds by it; what comes out is that of whole maps."""
    own = [facts(two, rank)[f"read {name}"] for rank in (0, 1)]
    config = read_config(two / f"map of {name}")
    omega = {f"{e.file} {e.key}" for parts in config.formats[config.storage].values() for e in parts.values()}
    read = [[tensor for tensor in fact["tensors"] if tensor in omega] for fact in own]
    # The inputs' directions that q and v have in common belong to both.
    twice = set(read[0]) & set(read[1])
    assert sorted({*read[0], *read[1]}) == sorted(omega) and all("input" in tensor for tensor in twice)
    assert all(len(each) == len(set(each)) < len(omega) for each in read)
    assert not set(own[0]["held"]) & set(own[1]["held"])
    for rank in (0, 1):
        whole = tensors(two, f"protect {name}", rank)
        assert_alike(tensors(two, f"read {name}", rank), whole, 1e-6)
        for got, line in zip(own[rank]["lines"], facts(two, rank)[f"protect {name}"], strict=True):
            assert {k: v for k, v in got.items()} == pytest.approx(line, rel=1e-6)


def test_what_another_process_has_read_is_refused_by_name(two):
    for rank in (0, 1):
        assert facts(two, rank)["given is whole"]
        assert "is kept by another process" in facts(two, rank)["not here"]


def test_a_map_that_is_damaged_in_one_processs_share_is_refused_by_all(two):
    said = [facts(two, rank)["damaged"] for rank in (0, 1)]
    assert said[0] == said[1] and "does not match its checksum" in said[0]


def test_a_recording_by_two_is_resumed(two):
    assert all(facts(two, rank)["resumed equals whole"] for rank in (0, 1))
    names = {path.name for path in (two / "cut" / "checkpoint-2").iterdir()}
    assert {f"importance_recorder-0000{i}-of-00002.safetensors" for i in (1, 2)} <= names


def test_a_recording_by_two_goes_on_in_one(two, tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = recorded_trainer("path", tmp_path / "whole", batch=4, max_steps=4)
    whole.train()
    again = recorded_trainer("path", tmp_path / "again", batch=4, **settings)
    again.train(resume_from_checkpoint=str(two / "cut" / "checkpoint-2"))
    assert_alike(dict(again.importance), dict(whole.importance), 1e-3)


def test_a_checkpoint_without_one_processs_share_is_not_whole(two, tmp_path):
    import shutil

    from alora_trainer.trainer.resume import why_torn

    checkpoint = Path(shutil.copytree(two / "cut" / "checkpoint-2", tmp_path / "checkpoint-2"))
    assert why_torn(checkpoint) is None
    (checkpoint / "importance_recorder-00002-of-00002.safetensors").unlink()
    assert why_torn(checkpoint) == "importance_recorder-00002-of-00002.safetensors is missing"


def test_nan_in_one_process_stops_both(two):
    words = {facts(two, rank)["diverged"] for rank in (0, 1)}
    assert len(words) == 1
    assert "the loss is not finite in step 2; the last good checkpoint is checkpoint-1" in words.pop()


def test_sharded_parameters_get_the_exact_gradients(two):
    """fully_shard: data and penalty gradients, drift and Omega against one process with all the data."""
    model = build()
    importance = reference_map(model)
    move_factors(model, 0.05)
    rows = token_rows().select(range(4))
    ids, labels = torch.tensor(rows["input_ids"]), torch.tensor(rows["labels"])
    penalty = dense_penalty(model, importance, lam=0.3)
    # Two processes' losses, each over 20 and doubled, averaged.
    loss = sum(model(input_ids=ids[i : i + 2], labels=labels[i : i + 2], num_items_in_batch=20).loss for i in (0, 2))
    loss.backward()
    from alora_trainer.importance.recording.recorder import Recorder
    from alora_trainer.weights.adapted import adapted_weights
    from alora_trainer.weights.trained_weight import learning_rates

    weights = adapted_weights(model)
    data = {weight.name: weight.gradients() for weight in weights}
    penalty.backward()
    whole = {f"{w.name}.{i}": g for w in weights for i, g in enumerate(w.gradients())}
    recorder = Recorder(weights, "path", 1e-3)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    recorder.before_step(data, learning_rates(optimizer))
    optimizer.step()
    recorder.after_step()
    drift = {
        w.name: float(
            (w.scaling * w.b @ w.a - w.scaling * importance.reference[w.name].b @ importance.reference[w.name].a).norm()
        )
        for w in weights
    }
    expected = whole | {f"{name}.omega": omega for name, omega in recorder.finish().items()}
    for rank in (0, 1):
        assert_alike(tensors(two, "fully_shard", rank), expected, 1e-4)
        fact = facts(two, rank)["fully_shard"]
        assert fact["penalty"] == pytest.approx(float(penalty.detach()), rel=1e-5)
        assert fact["drift"] == pytest.approx(drift, rel=1e-4)
        assert math.isfinite(fact["penalty"])
        assert fact["base samples"] == {weight.name: weight.base_sample() for weight in weights}
