"""docs/methods has every method, and what it says of files is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from alora_trainer.experiment.methods import METHODS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs" / "methods").glob("*.md"))


def test_every_method_has_a_page() -> None:
    index = (ROOT / "docs" / "methods" / "README.md").read_text(encoding="utf-8")
    for name in METHODS:
        (row,) = [line for line in index.splitlines() if f"`{name}`" in line and line.startswith("| [")]
        page = re.findall(r"\]\((.+?)\)", row)[0]
        text = (ROOT / "docs" / "methods" / page).read_text(encoding="utf-8")
        assert name in text.splitlines()[0] and "Tests:" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (page.parent / link).exists(), link
    for name in re.findall(r"(?:tests|recipes|benchmarks|alora_trainer)/[\w/.-]+?\.(?:py|yaml)", text):
        assert (ROOT / name).is_file(), name
