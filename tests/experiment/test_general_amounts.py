"""How much general text a plan finds: counted, and no further than is needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alora_trainer.data.sources import write_lines
from alora_trainer.experiment.recipe.plan import general_amounts
from alora_trainer.experiment.recipe.plan.general_amounts import general_text
from alora_trainer.experiment.recipe.reading import load_recipe
from tests.tiny_recipe import write_all


@pytest.mark.parametrize(("wanted", "read"), [("64", 11), ("null", 500)])
def test_a_large_corpus_is_read_as_far_as_its_tokens_are_wanted(
    wanted: str, read: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 tokens are within 1,024 bytes, which eleven documents of 99 have."""
    recipe_file = write_all(tmp_path)
    write_lines(tmp_path / "large.jsonl", ({"text": f"{place:03d} " + "word " * 19} for place in range(500)))
    recipe = load_recipe(
        recipe_file, {"general.train": f"{{large: {tmp_path / 'large.jsonl'}}}", "general.train_tokens": wanted}
    )
    seen = []
    stream = general_amounts.stream_records

    def counting(source: Any, **settings: Any) -> Iterator[Any]:
        for row in stream(source, **settings):
            seen.append(source)
            yield row

    monkeypatch.setattr(general_amounts, "stream_records", counting)
    found = general_text(recipe)
    assert len([source for source in seen if "large" in str(source)]) == read
    assert found.train is not None and (found.train == 64 if wanted == "64" else found.train > 500 * 20)
