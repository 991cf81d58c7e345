"""Tiny models and data, built once and copied: the tests train real trainers on them."""

from __future__ import annotations

import functools
import gc
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.artefact.hub_server.server import HubServer

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes, which would fight for the processors
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ANN, BOB = "hf_tokenOfAnn", "hf_tokenOfBob"
# The Hub that this process and all that it starts see is a server of our own: libraries read its address when they are
# imported, so it runs from the beginning. What is asked of it is answered at once, and nothing leaves this machine.
HUB = HubServer({ANN: "ann:tiny-org", BOB: "bob"})
HUB.__enter__()
_HOME = tempfile.TemporaryDirectory(prefix="hub-home-", ignore_cleanup_errors=True)
os.environ.update(HUB.environment(_HOME.name))
os.environ.pop("HF_TOKEN", None)

from alora_trainer.basics.heartbeat import Heartbeat  # noqa: E402
from tests.tiny_training import (  # noqa: E402
    move_factors as move_factors,
)
from tests.tiny_training import quiet_arguments, tiny_llama, token_rows, with_lora  # noqa: E402

# Fixtures of the tests of evaluation.
pytest_plugins = ("tests.evaluation_fixtures",)

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


@pytest.fixture(scope="session", autouse=True)
def _templates_compiled_once() -> Iterator[None]:
    """Every adapter that is saved has PEFT's card, whose template takes longer to compile than a tiny adapter to train."""
    import jinja2

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jinja2.Environment, "compile", functools.cache(jinja2.Environment.compile))
        yield


@pytest.fixture(autouse=True)
def _lines_as_without_a_command() -> None:
    """A command sends our lines to standard error alone; no test depends on whether one ran before it in its process."""
    own = logging.getLogger("alora_trainer")
    own.handlers, own.propagate = [], True
    own.setLevel(logging.NOTSET)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Progress is told after every piece, as without a terminal after half a minute; the lines so far."""
    monkeypatch.setitem(Heartbeat.__init__.__kwdefaults__, "every", 0.0)
    caplog.set_level(logging.INFO, "alora_trainer")
    return lambda: [record.message for record in caplog.records]


def pytest_sessionfinish() -> None:
    """What is frozen below is taken apart like all else, or triton would report it as leaked."""
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def _cheap_collections() -> None:
    """Every training ends with a garbage collection: let it look at what comes after the imports, and each module, alone."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real models and data, where there is one."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared (real models and data), which is not here")
    return SHARED


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The Hub, empty, with a cache of the test's own, and Ann (who may write to tiny-org) logged in."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setenv("HF_TOKEN", ANN)
    HUB.reset()
    yield HUB
    HUB.reset()


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
