"""A kind of importance that is not element-wise, added from outside: recorded values, files, arithmetic and penalty."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from alora_trainer import ALoRAError, ImportanceMap
from alora_trainer.artefact.hub.inspect import describe
from alora_trainer.artefact.reading import verify_map
from alora_trainer.basics.safetensors_writer import tensor_digest, write_tensors
from alora_trainer.importance.controls import control_map
from alora_trainer.importance.kinds.formats import FORMATS, KINDS
from alora_trainer.penalty import QuadraticPenalty
from alora_trainer.penalty.backends.choice import BACKENDS
from alora_trainer.weights.adapted import adapted_weights
from alora_trainer.weights.model_weights import present_theta, trained_weights
from alora_trainer.weights.parameterization import Parameterization
from tests.conftest import move_factors
from tests.penalty.test_penalty import made_map, relative
from tests.tiny_kind import A_KIND, InputCovariance, registered
from tests.tiny_map import change_config


@pytest.fixture(autouse=True)
def _kind() -> Iterator[None]:
    with registered(*A_KIND):
        yield
    assert not {"input_moments", "covariance32"} & {*KINDS, *FORMATS, *BACKENDS}


def moments(n: int, seed: int) -> torch.Tensor:
    x = torch.randn(2 * n, n, generator=torch.Generator().manual_seed(seed))
    return x.T @ x / (2 * n)


def covariance_map(model: Any, weights: Any, seed: int = 0) -> ImportanceMap:
    omega = {w.name: InputCovariance(w.shape, {"": moments(w.shape[1], seed + i)}) for i, w in enumerate(weights)}
    return ImportanceMap(omega, present_theta(model, weights))


@pytest.fixture
def model(lora_model: Callable[..., Any]) -> Any:
    return lora_model(moved=True)


def dense(importance: ImportanceMap, name: str) -> torch.Tensor:
    """M itself, (mn, mn), in float64."""
    stored = importance.stored(name)
    return torch.kron(torch.eye(stored.shape[0], dtype=torch.float64), stored.parts[""].double())


def test_its_measures_are_those_of_the_dense_metric(model: Any) -> None:
    importance = covariance_map(model, adapted_weights(model))
    for name in importance:
        metric, (m, n) = dense(importance, name), importance.stored(name).shape
        assert importance.layer_norms[name] == pytest.approx(float(metric.norm()), rel=1e-6)
        assert importance.total([name]) == pytest.approx(float(metric.trace()), rel=1e-6)
        torch.testing.assert_close(importance[name].double(), metric.diagonal().view(m, n))
    negative = {name: InputCovariance(s.shape, {"": -s.parts[""]}) for name, s in importance._omega.items()}
    with pytest.raises(ALoRAError, match="negative values"):
        importance.with_omega(negative)


@pytest.mark.parametrize("backend", [None, "dense"])
def test_the_penalty_equals_the_dense_reference(model: Any, backend: str | None) -> None:
    importance = covariance_map(model, adapted_weights(model))
    move_factors(model, 0.1, seed=11)
    weights = adapted_weights(model)
    penalty = QuadraticPenalty(weights, importance, lam=0.7, backend=backend)
    step = penalty.evaluate()
    names = [w.name for w in weights]
    unit = sum(dense(importance, n).trace() for n in names) / sum(math.prod(w.shape) for w in weights)
    norms = {n: dense(importance, n).norm() for n in names}
    mean_norm = sum(norms.values()) / len(norms)
    total = torch.zeros((), dtype=torch.float64)
    leaves = {w.name: [p.detach().double().requires_grad_() for p in (w.a, w.b)] for w in weights}
    for weight in weights:
        a, b = leaves[weight.name]
        reference = importance.reference[weight.name]
        drift = weight.scaling * b @ a - reference.scaling * reference.b.double() @ reference.a.double()
        r = drift.flatten() @ dense(importance, weight.name) @ drift.flatten()
        total = total + 0.7 * norms[weight.name] / mean_norm * r / unit
    total.backward()
    assert relative(step.value, total) < 1e-5
    for weight in weights:
        for got, leaf in zip(step.gradients[weight.name], leaves[weight.name], strict=True):
            assert relative(got, leaf.grad) < 1e-5
    assert {held.backend for held in penalty.held.values()} == {backend or "input_moments"}


def test_what_it_cannot_do_is_refused_in_words(model: Any) -> None:
    weights = adapted_weights(model)
    importance = covariance_map(model, weights)
    with pytest.raises(ALoRAError, match="it computes element-wise importance, and this is input_moments"):
        QuadraticPenalty(weights, importance, lam=1.0, backend="blocked")
    with pytest.raises(ALoRAError, match="'input_moments' does not fit: it computes no elementwise importance"):
        QuadraticPenalty(weights, made_map(model), lam=1.0, backend="input_moments")
    with pytest.raises(ALoRAError, match="no decoupled update"):
        QuadraticPenalty(weights, importance, lam=1.0).pull({})
    with pytest.raises(ALoRAError, match="no decoupled update"):  # and before the first step, where it will be needed
        QuadraticPenalty(weights, importance, lam=1.0, pulls=True)
    with pytest.raises(ALoRAError, match="cannot be converted to 'log8', which keeps elementwise"):
        importance.convert("log8")
    with pytest.raises(ALoRAError, match="elementwise in the earlier one and input_moments in the later one"):
        importance.after(made_map(model))
    with pytest.raises(ALoRAError, match="no shuffled control of input_moments importance"):
        control_map("shuffled", importance)


def test_without_a_backend_that_fits_it_is_refused(model: Any) -> None:
    weights = adapted_weights(model)
    importance = covariance_map(model, weights)
    backend = BACKENDS.remove("input_moments")
    try:
        with pytest.raises(ALoRAError, match="no penalty backend computes importance of the format covariance32"):
            QuadraticPenalty(weights, importance, lam=1.0)
    finally:
        BACKENDS.register("input_moments", backend)


def test_it_is_saved_checked_loaded_and_added(model: Any, tmp_path: Path) -> None:
    weights = adapted_weights(model)
    first, second = covariance_map(model, weights, 0), covariance_map(model, weights, 50)
    (second + first).save_pretrained(tmp_path / "map")
    config = verify_map(tmp_path / "map")
    assert (config.kind, config.storage) == ("input_moments", "covariance32")
    again = ImportanceMap.from_pretrained(tmp_path / "map")
    assert again == second + first != first
    for name in again:
        assert torch.equal(again.stored(name).parts[""], first.stored(name).parts[""] + second.stored(name).parts[""])
    assert "input_moments-importance" in (tmp_path / "map" / "README.md").read_text()
    assert "covariance32" in describe(str(tmp_path / "map"))
    with pytest.raises(ALoRAError, match="keeps elementwise importance, and that of this map is input_moments"):
        first.save_pretrained(tmp_path / "other", storage=["covariance32", "log8"])
    with pytest.raises(ALoRAError, match="cannot be converted"):
        ImportanceMap.from_pretrained(tmp_path / "map", storage="float32")


def test_a_strangers_file_is_checked_by_the_kind(model: Any, tmp_path: Path) -> None:
    importance = covariance_map(model, adapted_weights(model))
    importance.save_pretrained(tmp_path / "map")
    path, name = tmp_path / "map" / "importance.safetensors", next(iter(importance))
    tensors = {key: importance.stored(key).parts[""].clone() for key in importance}
    tensors[name][0, 1] += 1
    write_tensors(path, tensors)

    def change(config: dict[str, Any]) -> None:
        config["formats"]["covariance32"]["parts"][name][""]["sha256"] = tensor_digest(tensors[name])

    change_config(tmp_path / "map", change)
    with pytest.raises(ALoRAError, match=f"the covariance of {name} is not symmetric"):
        ImportanceMap.from_pretrained(tmp_path / "map")


@pytest.mark.parametrize(
    ("kind", "message"), [("elementwise", "covariance32 is no format of elementwise"), ("spectral", "is unknown")]
)
def test_a_config_with_another_kind_is_refused(model: Any, tmp_path: Path, kind: str, message: str) -> None:
    covariance_map(model, adapted_weights(model)).save_pretrained(tmp_path / "map")
    change_config(tmp_path / "map", lambda config: config.update(kind=kind))
    with pytest.raises(ALoRAError, match=message):
        ImportanceMap.from_pretrained(tmp_path / "map")


def test_controls_and_what_was_not_recorded_are_of_its_kind(model: Any) -> None:
    weights = adapted_weights(model)
    importance = covariance_map(model, weights)
    even = control_map("even", importance)
    assert even.kind == "input_moments"
    assert even.layer_norms == pytest.approx(importance.layer_norms, rel=1e-5)
    part = importance.select([0]).with_uniform(weights)
    assert {part.stored(name).kind for name in part} == {"input_moments"} and len(part) == len(weights)


def test_whole_weights_are_held_by_it(_tiny_llama: Any) -> None:
    model = copy.deepcopy(_tiny_llama)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("q_proj" in name)
    weights = trained_weights(model, Parameterization.FULL)
    importance = covariance_map(model, weights)
    with torch.no_grad():
        for weight in weights:
            weight.parameters[0].add_(0.1)
    step = QuadraticPenalty(weights, importance, lam=1.0, layer_weights="none", normalize=False).evaluate()
    total = torch.zeros((), dtype=torch.float64)
    for weight in weights:
        theta = weight.matrices[0].double().requires_grad_()
        drift = (theta - importance.reference[weight.name].weight.double()).flatten()
        r = drift @ dense(importance, weight.name) @ drift
        r.backward()
        assert relative(step.gradients[weight.name][0], theta.grad) < 1e-5
        total = total + r.detach()
    assert relative(step.value, total) < 1e-5
