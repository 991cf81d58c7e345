"""Evaluation mode for a while."""

from __future__ import annotations

import pytest
from torch import nn

from alora_trainer.basics.modes import evaluation_mode


def test_every_modules_own_mode_comes_back_after_an_error_too() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2)))
    model.train()
    model[1][0].eval()
    before = [module.training for module in model.modules()]
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before
    with pytest.raises(RuntimeError, match="stop"), evaluation_mode(model):
        raise RuntimeError("stop")
    assert [module.training for module in model.modules()] == before
