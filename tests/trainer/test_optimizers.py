"""Every optimizer that people use: recorded by what it really does, and held."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from alora_trainer import ALoRAConfig
from alora_trainer.weights.adapted import adapted_weights
from tests.importance.test_recorder import InOrder
from tests.older_libraries import skip_before

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw_torch": {},
    "adamw_torch_fused": {},
    "sgd": {"optim_args": "momentum=0.9"},
    "adafactor": {},
    "adamw_bnb_8bit": {},
    "lion_32bit": {},
    "schedule_free_adamw": {},
    "rmsprop": {},
}
_NEEDS = {"adamw_bnb_8bit": "bitsandbytes", "lion_32bit": "bitsandbytes", "schedule_free_adamw": "schedulefree"}


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_every_optimizer_is_recorded_by_its_real_movement(lora_model, token_data, training_arguments, optim):
    """`path` against the same sum over matrices that a hook on the optimizer itself has seen; then the penalty holds."""
    if optim in _NEEDS:
        pytest.importorskip(_NEEDS[optim])
    data = token_data()
    seen: dict[str, torch.Tensor] = {}

    class Watched(InOrder):
        """Writes w down by itself, in float64, around the optimizer's own step."""

        def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
            optimizer = super().create_optimizer(*args, **kwargs)
            step = optimizer.step

            def watched(*inner: Any, **more: Any) -> Any:
                before = {
                    w.name: (w.a.double().clone(), w.b.double().clone(), *gradients[w.name]) for w in self._weights
                }
                result = step(*inner, **more)
                for w in self._weights:
                    a, b, ga, gb = before[w.name]
                    rate = optimizer.param_groups[0]["lr"]
                    g = w.scaling * (gb @ a + b @ ga - rate * gb @ ga)
                    moved = w.scaling * (w.b.double() @ w.a.double() - b @ a)
                    seen[w.name] = seen.get(w.name, torch.zeros_like(g)) - g * moved
                return result

            optimizer.step = watched
            return optimizer

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            for w in self._weights:
                gradients[w.name] = tuple(p.grad.double().clone() for p in w.parameters)
            return loss

    if optim in ("adamw_bnb_8bit", "lion_32bit"):
        skip_before("bitsandbytes", "0.50", "an earlier one has no such optimizer on a CPU")
    gradients: dict[str, Any] = {}
    model = lora_model(moved=True)
    start = {w.name: w.scaling * w.b.double() @ w.a.double() for w in adapted_weights(model)}
    settings = {"optim": optim, "learning_rate": 0.01, "max_steps": 3, "max_grad_norm": 0.1} | OPTIMIZERS[optim]
    trainer = Watched(model, training_arguments(**settings), train_dataset=data, alora=ALoRAConfig(record="path"))
    trainer.train()
    for weight in trainer._weights:
        delta = weight.scaling * weight.b.double() @ weight.a.double() - start[weight.name]
        expected = seen[weight.name].clamp(min=0) / (delta**2 + 1e-3)
        assert expected.max() > 0
        error = (trainer.importance[weight.name].double() - expected).norm() / expected.norm()
        assert float(error) < 1e-3, (weight.name, float(error))
    drifts = []
    for lam in (0.0, 1e3):
        again = copy.deepcopy(trainer.model)
        args = training_arguments(**settings | {"max_steps": 6})
        held = InOrder(again, args, train_dataset=data, importance=trainer.importance, alora=ALoRAConfig(lam=lam))
        held.train()
        drifts.append([log["drift"] for log in held.state.log_history if "drift" in log][-1])
    assert drifts[1] < drifts[0]


def test_an_optimizer_of_ones_own_is_recorded(lora_model, token_data, training_arguments):
    lion = pytest.importorskip("lion_pytorch")
    model = lora_model(moved=True)
    optimizer = lion.Lion([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    trainer = InOrder(
        model, training_arguments(), train_dataset=token_data(), optimizers=(optimizer, scheduler),
        alora=ALoRAConfig(record="path"),
    )  # fmt: skip
    trainer.train()
    assert all(float(omega.max()) > 0 for omega in trainer.importance.values())
