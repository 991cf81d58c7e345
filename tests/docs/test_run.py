"""The code blocks of the documentation, run: a page's from top to bottom, all pages in one process and one folder."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from alora_trainer.cli.command_line import main
from tests.docs.pages import Block, blocks, pages
from tests.docs.world import write_world
from tests.tiny_recipe import make_collecting_cheap

# What makes a training quick and quiet, which a reader's own need not be.
_QUIET = {
    **{"tune.use_cpu": "true", "tune.disable_tqdm": "true", "tune.gradient_checkpointing": "false"},
    **{"evaluation.bootstrap_iters": "10", "evaluation.limit": "8", "evaluation.batch_size": "16"},
}
_RECIPES = ("fit", "init", "run", "record", "tune", "eval", "sweep")


def _to_run(page: str) -> list[Block]:
    return [one for one in blocks(page) if one.language != "yaml" and one.not_run is None and not one.run_by]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    make_collecting_cheap()
    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    return folder


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, world: Path) -> None:
    """The folder, and trainings of four steps; pictures and long answers are for the tests of what makes them."""
    from alora_trainer.artefact import writing
    from alora_trainer.experiment.fit import guarantee, prepared, whole_fit
    from alora_trainer.experiment.recipe.plan.devices import get_device

    monkeypatch.chdir(world)
    monkeypatch.setattr("alora_trainer.cli.command_line.configure_output", lambda: None)
    monkeypatch.setattr(writing, "draw_heatmap", lambda *_: None)
    monkeypatch.setattr(guarantee, "_ANSWER_TOKENS", 2)
    monkeypatch.setattr(prepared, "get_device", lambda _: get_device("4090"))  # instead of timing this machine
    monkeypatch.setattr(whole_fit, "fit", partial(whole_fit.fit, max_steps=4, overrides=_QUIET))


def _run_commands(code: str) -> None:
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        assert words[0] == "alora", f"{line!r}: only alora's own commands are run here; say why this is not run"
        quiet = [word for name, value in _QUIET.items() for word in (f"--{name}", value)]
        steps = ["--max-steps", "4"] if words[1] in ("fit", "init") else []
        more = [*steps, *quiet] if words[1] in _RECIPES else []
        assert main([*words[1:], *more]) in (0, None), line


@pytest.mark.parametrize("page", [page for page in pages() if _to_run(page)])
def test_the_blocks_of_a_page_run_as_they_stand(page: str) -> None:
    to_run = _to_run(page)
    if any("fitted/" in block.code for block in to_run) and not Path("fitted").exists():
        to_run = [*_to_run("README.md"), *to_run]  # which has made it already, where all pages are run
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in to_run:
        if block.language == "bash":
            _run_commands(block.code)
        else:
            exec(compile(block.code, str(block), "exec"), names)
