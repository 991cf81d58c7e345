"""More data in the folder of an earlier fit: that one is set aside whole, and its items and its map are gone on from."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alora_trainer.data.sources import read_lines
from alora_trainer.errors import ALoRAError
from alora_trainer.experiment.fit import whole_fit
from alora_trainer.experiment.fit.request import FitRequest
from alora_trainer.experiment.fit.set_aside import as_it_lies, set_aside
from tests.tiny_recipe import write_all

MAP = Path("run") / "curvature_kronecker" / "map"


@pytest.fixture
def both(tmp_path: Path) -> FitRequest:
    """A request for more items in the folder of a fit, of which all but the training and the promise is real."""
    write_all(tmp_path)
    folder = tmp_path / "both"
    texts = [{"text": f"the {number} of us"} for number in range(420)]
    (tmp_path / "general.jsonl").write_text("".join(json.dumps(one) + "\n" for one in texts))
    request = FitRequest(
        str(tmp_path / "model"),
        (items(tmp_path / "items.jsonl", 0),),
        folder,
        general=(str(tmp_path / "general.jsonl"),),
        overrides={"tune.use_cpu": "true"},
    )
    whole_fit.init(request)
    for part in (MAP, Path("adapter"), Path("promise")):
        (folder / part).mkdir(parents=True)
    (folder / "report.html").write_text("done")
    return replace(request, data=(items(tmp_path / "more.jsonl", 20),), after=folder)


def items(path: Path, first: int) -> str:
    more = [{"question": f"{a} and {b}", "answer": str(a + b)} for a in range(first, first + 5) for b in range(6)]
    path.write_text("".join(json.dumps(one) + "\n" for one in more))
    return str(path)


def learned(folder: Path) -> set[str]:
    return {row["prompt"] for row in read_lines(folder / "data" / "train.jsonl")}


def test_the_next_fit_learns_both_and_is_held_by_the_first_ones_map(
    both: FitRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, first = both.output_dir, learned(both.output_dir)
    held: list[str | None] = []

    def stopped(*_: Any, importance: str | None, **__: Any) -> None:
        held.append(importance)
        raise KeyboardInterrupt

    monkeypatch.setattr(whole_fit, "evaluate_recipe", lambda *_, **__: None)
    monkeypatch.setattr(whole_fit, "tune_recipe", stopped)
    for _ in range(2):  # the second time it goes on, and sets nothing aside again
        with pytest.raises(KeyboardInterrupt):
            whole_fit.run_fit(both)
    earlier = folder / "earlier" / "1"
    assert [path.name for path in (folder / "earlier").iterdir()] == ["1"]
    assert (earlier / "adapter").is_dir() and (earlier / "report.html").is_file() and learned(earlier) == first
    assert first & learned(folder) and any(
        "20 and" in prompt for prompt in learned(folder)
    )  # of both, but for the test
    assert held == [str(earlier / MAP)] * 2 and not (folder / "run").exists()
    # A third one is held by the same map, though the second has none of its own.
    (folder / "report.html").write_text("done")
    third = replace(both, data=(items(folder / "third.jsonl", 40),))
    assert whole_fit.with_earlier(as_it_lies(third)).importance == str((earlier / MAP).resolve())


def test_killed_while_it_is_set_aside_it_goes_on(both: FitRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = both.output_dir
    names = {path.name for path in folder.iterdir()}
    rename, moved = os.rename, []

    def killed(source: Path, to: Path) -> None:
        if len(moved) == 2:
            raise KeyboardInterrupt
        moved.append(source)
        rename(source, to)

    found = set_aside(both)
    assert found is not None and not found.begun and found.now == folder
    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            found.move()
    halfway = set_aside(both)
    assert halfway is not None and halfway.begun and not halfway.moved
    halfway.move()
    done = set_aside(both)
    assert done is not None and done.moved and done.now == folder / "earlier" / "1"
    assert {path.name for path in done.now.iterdir()} == {name for name in names if not name.startswith(".")}


def test_what_cannot_be_set_aside_is_refused_and_nothing_is_moved(both: FitRequest) -> None:
    (both.output_dir / "report.html").unlink()
    with pytest.raises(ALoRAError, match="is not finished: finish it by its own command"):
        set_aside(both)
    with pytest.raises(ALoRAError, match="for the recipe alone, choose another folder"):
        whole_fit.init(both)
    assert set_aside(replace(both, after=None)) is None and not (both.output_dir / "earlier").exists()
