"""The site: it is built without a warning where Sphinx is installed; versions beside each other; its contents without it."""

from __future__ import annotations

import importlib.util
import re
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from tests.docs.pages import DOCS, text_of


def script(name: str) -> ModuleType:
    """A file in docs/ as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    for package in ("sphinx", "myst_parser", "furo"):
        if find_spec(package) is None:
            pytest.skip(f"needs {package}: pip install -c constraints.txt '.[docs]'")
    from sphinx.cmd.build import main

    assert (
        main(
            ["-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(tmp_path / "site"), "-d", str(tmp_path / "trees")]
        )
        == 0
    )
    front = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert "not PEFT" in front and 'href="how-to/dpo.html"' in front and 'href="fit.html#' in front
    reference = (tmp_path / "site" / "api" / "package.html").read_text(encoding="utf-8")
    assert 'id="alora_trainer.ALoRAConfig"' in reference and 'id="alora_trainer.fit"' in reference


def test_the_contents_are_the_lists_of_the_index() -> None:
    made = script("conf").contents_of(text_of("docs/index.md"))
    assert re.findall(r":caption: (.+)", made) == re.findall(r"^## (.+)$", text_of("docs/index.md"), re.MULTILINE)
    assert "\nDPO <how-to/dpo>\n" in made


def test_links_to_folders_beside_the_documentation_become_text() -> None:
    mended = script("conf").without_links_to_folders
    assert mended("in [results](../results/) and [one](../recipes/ablation.yaml)", DOCS) == (
        "in results and [one](../recipes/ablation.yaml)"
    )
    assert mended("[README](../../README.md#licence)", DOCS / "how-to") == "[README](../index.md)"
    assert mended("[some](../examples/README.md)", DOCS) == "some (`examples/README.md` in the repository)"


def test_versions_stand_beside_each_other_and_the_newest_is_led_to(tmp_path: Path) -> None:
    site = script("build_site")
    assert site.newest_first(["0.9.0", "0.10.0", "1.0.0rc1", "1.0.0", "0.1.0"]) == [
        *("1.0.0", "1.0.0rc1", "0.10.0", "0.9.0", "0.1.0")
    ]
    for name in ("0.9.0", "0.10.0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "index.html").touch()
    (tmp_path / ".doctrees").mkdir()
    site.write_lists(tmp_path)
    assert "url=0.10.0/index.html" in (tmp_path / "index.html").read_text(encoding="utf-8")
    listed = re.findall(r'href="([\w.]+)/index.html"', (tmp_path / "versions.html").read_text(encoding="utf-8"))
    assert listed == ["0.10.0", "0.9.0"]
    assert site.own_version() == script("conf").release
