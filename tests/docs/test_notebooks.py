"""The notebooks, every cell in its order, on a tiny model (what the cell of parameters sets is replaced), and the examples."""

from __future__ import annotations

import json
import os
import re
import runpy
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import ROOT
from tests.docs.world import write_world
from tests.tiny_recipe import make_collecting_cheap

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PARAMETERS = {
    "MODEL": "base-model",
    "ITEMS": "items.jsonl",
    "GENERAL": "general.jsonl",
    "QUESTION": "2 and 3",
    "STEPS": 3,
}
_QUIET = {
    **{"tune.use_cpu": "true", "tune.disable_tqdm": "true", "tune.gradient_checkpointing": "false"},
    **{"evaluation.bootstrap_iters": "10", "evaluation.limit": "8", "evaluation.batch_size": "16"},
}


def cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def run_cells(path: Path, given: dict[str, Any]) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells(path):
        if given and "parameters" in cell["metadata"].get("tags", ()):
            names |= given
        else:
            exec(compile("".join(cell["source"]), f"{path.name}, {cell['id']}", "exec"), names)


def run_script(path: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [path, *arguments])
    runpy.run_path(str(ROOT / path), run_name="__main__")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a tiny model and data; a fit in it takes no time to look at this machine, or to draw."""
    from alora_trainer.artefact import writing
    from alora_trainer.experiment.fit import guarantee, prepared, whole_fit
    from alora_trainer.experiment.recipe.plan.devices import get_device

    make_collecting_cheap()
    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    with pytest.MonkeyPatch.context() as changed:
        changed.chdir(folder)
        changed.setattr(writing, "draw_heatmap", lambda *_: None)
        changed.setattr(guarantee, "_ANSWER_TOKENS", 2)
        changed.setattr(prepared, "get_device", lambda _: get_device("4090"))
        changed.setattr(whole_fit, "fit", partial(whole_fit.fit, overrides=_QUIET))
        yield folder


@pytest.fixture(scope="module")
def fitted(world: Path) -> Path:
    run_cells(ROOT / "notebooks" / "first_fit.ipynb", PARAMETERS)
    return world / "fitted"


def test_a_first_fit(fitted: Path) -> None:
    assert (fitted / "adapter" / "adapter_model.safetensors").is_file()


def test_reading_a_map(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_cells(ROOT / "notebooks" / "reading_a_map.ipynb", PARAMETERS)
    printed = capsys.readouterr().out
    shares = [int(found) for found in re.findall(r"have (\d+) % of the importance", printed)]
    assert shares and all(1 <= share <= 100 for share in shares) and "######" in printed


def test_protecting_sft(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("trl")
    run_cells(ROOT / "notebooks" / "protecting_sft.ipynb", PARAMETERS)
    assert len(re.findall(r"general loss \d\.\d+ nats", capsys.readouterr().out)) == 2
    assert (world / "chat-adapter" / "adapter_model.safetensors").is_file()


def test_the_example_of_a_trainer(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_script(
        "examples/trainer.py", "base-model", "general.jsonl", "unseen.jsonl", "out", "2", monkeypatch=monkeypatch
    )
    assert (world / "out" / "adapter" / "adapter_model.safetensors").is_file()
    assert (world / "out" / "map" / "importance_config.json").is_file()


def test_the_example_of_sft(fitted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl")
    held = str(fitted / "run" / "curvature_kronecker" / "map")
    run_script(
        "examples/sft_chat.py", "base-model", held, "general.jsonl", "chats.jsonl", "sft", "2", monkeypatch=monkeypatch
    )
    assert (fitted.parent / "sft" / "adapter" / "adapter_model.safetensors").is_file()


def test_the_examples_are_short() -> None:
    scripts = [*(ROOT / "examples").glob("*.py"), ROOT / "examples" / "launch" / "protect.py"]
    assert len(scripts) == 3 and all(len(path.read_text().splitlines()) <= 60 for path in scripts)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_replaced_is_what_the_notebook_sets(path: Path) -> None:
    (parameters,) = [cell for cell in cells(path) if "parameters" in cell["metadata"].get("tags", ())]
    set_there = {line.split(" = ")[0] for line in parameters["source"] if " = " in line}
    assert set_there == set(PARAMETERS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nothing_that_was_run_is_kept(path: Path) -> None:
    """Outputs of somebody's machine, and its paths, stay out of the repository."""
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells(path))


@pytest.mark.skipif(
    not os.environ.get("ALORA_NOTEBOOKS"), reason="minutes: set ALORA_NOTEBOOKS=1 to run them as they stand"
)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_as_they_stand_on_the_embedded_model(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_cells(path, {})
