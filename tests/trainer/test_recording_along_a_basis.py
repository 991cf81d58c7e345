"""`ALoRAConfig.basis`: importance recorded along the directions of another map, saved, resumed, held and refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import TrainerCallback

from alora_trainer import ALoRAConfig, ALoRAError, ALoRATrainer, ImportanceMap
from alora_trainer.artefact.hub.inspect import describe
from alora_trainer.artefact.provenance import map_at_base
from alora_trainer.importance.origin import ImportanceInfo
from alora_trainer.weights.adapted import adapted_weights
from tests.dense_metric import random_importance
from tests.importance.test_recorder import InOrder
from tests.tiny_training import quiet_arguments, tiny_llama, token_rows, with_lora


def map_in_basis(model: Any, kept: tuple[int, int] = (6, 5), kind: str = "kronecker", seed: int = 0) -> ImportanceMap:
    weights = adapted_weights(model)
    omega = {w.name: random_importance(kind, *w.shape, kept, seed=seed + i) for i, w in enumerate(weights)}
    return map_at_base(weights, omega, ImportanceInfo(estimator=kind, tokens=12_288))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("basis")


@pytest.fixture(scope="module")
def basis(folder: Path) -> Path:
    map_in_basis(with_lora(tiny_llama())).save_pretrained(folder / "basis")
    return folder / "basis"


@pytest.fixture
def recording(lora_model: Any, token_data: Any, training_arguments: Any) -> Any:
    """`recording(basis, model=..., data=..., alora=..., **arguments)`: a trainer that records along it."""

    def make(basis: Path, *, model: Any = None, alora: Any = None, data: Any = None, **settings: Any) -> ALoRATrainer:
        config = ALoRAConfig(record="projected", basis=str(basis), **(alora or {}))
        data = token_data() if data is None else data
        return InOrder(model or lora_model(), training_arguments(**settings), train_dataset=data, alora=config)

    return make


@pytest.fixture(scope="module")
def recorded(basis: Path, folder: Path) -> Path:
    """The folder of a map that was recorded along the basis, with xi a share."""
    args, config = quiet_arguments(str(folder / "out")), ALoRAConfig(record="projected", basis=str(basis), xi="10%")
    trainer = InOrder(with_lora(tiny_llama()), args, train_dataset=token_rows(), alora=config)
    trainer.train()
    trainer.importance.save_pretrained(folder / "recorded")
    return folder / "recorded"


def test_the_map_says_what_it_is_and_comes_back_as_it_was(recorded: Path, basis: Path) -> None:
    directions, importance = (ImportanceMap.from_pretrained(str(folder)) for folder in (basis, recorded))
    assert importance.kind == "ekfac" and set(importance) == set(directions)
    for name in importance:
        stored = importance.stored(name)
        for part in ("output_vectors", "input_vectors"):
            assert torch.equal(stored.parts[part], directions.stored(name).parts[part])
        assert stored.parts["omega"].shape == (min(6, stored.shape[0]) + 1, 6) and bool(
            (stored.parts["omega"] > 0).any()
        )
    info = importance.info
    assert (info.estimator, info.xi, info.xi_share) == ("projected", None, 0.1)
    assert info.basis == "the directions of kronecker importance (12,288 tokens)"
    assert any(
        bool(b.any()) for name, b in importance.adapter_state.items() if "lora_B" in name
    )  # theta* is what was trained
    card = (recorded / "README.md").read_text()
    assert "| damping xi | 10 % of each weight's mean squared movement |" in card
    assert "It is no curvature, and R is in no nats." in card and "Half of R estimates" not in card
    assert "| recorded along | the directions of kronecker importance (12,288 tokens) |" in card
    assert "xi 0.1 of the mean squared movement, along the directions of kronecker" in describe(str(recorded))


@pytest.mark.parametrize(
    ("start", "application"),
    [("recorded", "coupled"), ("recorded", "decoupled"), ("merged", "coupled"), ("bare", "coupled")],
)
def test_it_holds_a_training_from_every_start(
    recorded: Path, lora_model: Any, token_data: Any, training_arguments: Any, start: str, application: str
) -> None:
    """The further lambda is raised, the less moves by the map's own measure."""
    importance = ImportanceMap.from_pretrained(str(recorded))
    moved = []
    for lam in (0.0, 30.0):
        base = lora_model().unload()
        model = PeftModel.from_pretrained(base, str(recorded), is_trainable=True)
        if start != "recorded":
            base = model.merge_and_unload() if start == "merged" else model.unload()
            model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
        before = {w.name: w.scaling * w.b @ w.a for w in adapted_weights(model)}
        config = ALoRAConfig(lam=lam, start=start, application=application)
        trainer = ALoRATrainer(
            model, training_arguments(), train_dataset=token_data(), importance=importance, alora=config
        )
        trainer.train()
        movements = {w.name: w.scaling * w.b @ w.a - before[w.name] for w in adapted_weights(model)}
        moved.append(sum(float((m * importance.stored(name).apply(m)).sum()) for name, m in movements.items()))
    assert 0 < moved[1] < 0.7 * moved[0]


def test_two_tasks_add_up_in_the_later_ones_directions(
    recorded: Path, recording: Any, basis: Path, lora_model: Any
) -> None:
    earlier = ImportanceMap.from_pretrained(str(recorded))
    model = PeftModel.from_pretrained(lora_model().unload(), str(recorded), is_trainable=True)
    alone = recording(basis, model=copy.deepcopy(model))
    alone.train()
    args = {"importance": earlier, "alora": ALoRAConfig(record="projected", basis=str(basis), lam=0)}
    both = InOrder(model, alone.args, train_dataset=alone.train_dataset, **args)
    both.train()
    assert both.importance.info.earlier_tasks[0]["xi_share"] == 0.1 and both.importance.info.xi == 1e-3
    for name in earlier:
        total = earlier.stored(name).parts["omega"] + alone.importance.stored(name).parts["omega"]
        got = both.importance.stored(name).parts["omega"]
        torch.testing.assert_close(got, total, rtol=1e-4, atol=1e-5 * float(total.max()))


def test_it_goes_on_from_a_checkpoint_along_the_same_basis_alone(
    recording: Any, basis: Path, lora_model: Any, tmp_path: Path
) -> None:
    whole = recording(basis, output_dir=str(tmp_path / "whole"))
    whole.train()
    saving = {"output_dir": str(tmp_path / "resumed"), "save_strategy": "steps", "save_steps": 2}
    recording(basis, max_steps=2, **saving).train()
    resumed = recording(basis, **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "resumed" / "checkpoint-2"))
    assert all(resumed.importance.stored(name).equals(whole.importance.stored(name)) for name in whole.importance)
    map_in_basis(lora_model(), seed=50).save_pretrained(tmp_path / "other")
    plain = InOrder(
        lora_model(), resumed.args, train_dataset=resumed.train_dataset, alora=ALoRAConfig(record="projected")
    )
    for other in (recording(tmp_path / "other", **saving), plain):
        with pytest.raises(ALoRAError, match="recorded along another basis"):
            other.train(resume_from_checkpoint=str(tmp_path / "resumed" / "checkpoint-2"))


def test_a_basis_that_does_not_fit_is_refused_before_the_first_step(
    recording: Any, basis: Path, lora_model: Any, token_data: Any, training_arguments: Any, tmp_path: Path
) -> None:
    elementwise = map_in_basis(lora_model())
    elementwise = elementwise.with_omega({name: elementwise[name] for name in elementwise})
    elementwise.save_pretrained(tmp_path / "elementwise")
    with pytest.raises(ALoRAError, match="its importance is elementwise, which has no directions"):
        recording(tmp_path / "elementwise").train()
    with pytest.raises(ALoRAError, match="along a basis for .*k_proj: there is none"):
        recording(basis, model=lora_model(target_modules=["q_proj", "k_proj"])).train()
    other = lora_model()
    for name, parameter in other.named_parameters():
        if "base_layer" in name:
            parameter.data += 0.1
    with pytest.raises(ALoRAError, match="other base weights"):
        recording(basis, model=other).train()
    with pytest.raises(ALoRAError, match="nowhere"):
        recording(tmp_path / "nowhere")
    config = ALoRAConfig(record="path", basis=str(basis))
    with pytest.raises(ALoRAError, match="would be recorded is ekfac, and that of the map .* is elementwise"):
        ALoRATrainer(
            lora_model(), training_arguments(), train_dataset=token_data(), importance=elementwise, alora=config
        )
    with pytest.raises(ALoRAError, match="basis=.* is for LoRA"):
        ALoRAConfig(record="path", basis=str(basis), full_parameters=True)
    with pytest.raises(ALoRAError, match="basis=7 must be the folder or Hub id"):
        ALoRAConfig(basis=7)  # type: ignore[arg-type]


def test_the_true_gradient_is_turned_too(
    basis: Path, lora_model: Any, token_data: Any, training_arguments: Any
) -> None:
    """`exact` along no direction at all: w is the mean of g * D over all elements, as it is of the sums by element."""
    map_in_basis(lora_model(), (0, 0)).save_pretrained(basis.with_name("nothing"))
    settings = {"max_steps": 2, "optim": "sgd", "learning_rate": 1e-3}
    found = []
    for place in (None, str(basis.with_name("nothing"))):
        config = ALoRAConfig(record="exact", xi=1e6, basis=place)
        trainer = InOrder(
            lora_model(moved=True), training_arguments(**settings), train_dataset=token_data(), alora=config
        )
        sums: dict[str, torch.Tensor] = {}
        trainer.add_callback(_Sums(trainer, sums))
        trainer.train()
        found.append(sums)
    for name, w in found[0].items():
        assert float(w.mean()) > 0
        torch.testing.assert_close(found[1][name].squeeze(), w.double().mean().float(), rtol=1e-4, atol=0)


class _Sums(TrainerCallback):
    """Copies the running sums before the training ends."""

    def __init__(self, trainer: Any, sums: dict[str, torch.Tensor]) -> None:
        self._trainer, self._sums = trainer, sums

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        recorder = self._trainer._recording.recorder
        self._sums |= {name: w.clone() for name, w in recorder.state_dict()[0].items() if name.endswith(".w")}
