"""Tiny models and data, built once and copied: the tests train real trainers on them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from tests.tiny_training import (  # noqa: E402
    move_factors as move_factors,
)
from tests.tiny_training import quiet_arguments, tiny_llama, token_rows, with_lora  # noqa: E402

# Fixtures of the tests of evaluation.
pytest_plugins = ("tests.evaluation_fixtures",)

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real models and data, where there is one."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared (real models and data), which is not here")
    return SHARED


@pytest.fixture(scope="session")
def _tiny_llama() -> Any:
    return tiny_llama()


@pytest.fixture
def lora_model(_tiny_llama: Any) -> Callable[..., Any]:
    """`lora_model(dtype=..., moved=..., **lora)`: a fresh tiny Llama with a LoRA adapter; `moved` gives B random values."""
    return lambda **settings: with_lora(_tiny_llama, **settings)


@pytest.fixture
def token_data() -> Callable[..., Any]:
    """`token_data(items, length)`: a data set of random token sequences; some labels are masked."""
    return token_rows


@pytest.fixture
def training_arguments(tmp_path: Path) -> Callable[..., Any]:
    """`training_arguments(**settings)`: quiet CPU arguments with a constant learning rate."""
    return lambda output_dir=str(tmp_path / "out"), **settings: quiet_arguments(output_dir, **settings)
