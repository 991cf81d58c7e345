"""The site: it can be built without a warning, where Sphinx is installed; versions beside each other; its contents."""

from __future__ import annotations

import importlib.util
import pickle
import re
import subprocess
import sys
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


needs_sphinx = pytest.mark.skipif(
    any(find_spec(package) is None for package in ("sphinx", "myst_parser", "furo")),
    reason="needs Sphinx: pip install -c constraints.txt '.[docs]'",
)


@needs_sphinx
def test_every_page_is_read_and_every_reference_resolved_without_a_warning(tmp_path: Path) -> None:
    """All but the drawing of the pages, which takes as long again; `docs/build_site.py` draws them."""
    from sphinx.environment import BuildEnvironment

    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "dummy", str(DOCS), str(tmp_path)]
    # In a process of its own: there, libraries are stood in for.
    done = subprocess.run([*command, "-d", str(tmp_path / "trees")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "trees" / "environment.pickle").open("rb") as file:
        site: BuildEnvironment = pickle.load(file)
    described = site.domaindata["py"]["objects"]
    assert described["alora_trainer.ALoRAConfig"].docname == described["alora_trainer.fit"].docname == "api/package"
    assert site.titles["index"].astext() and {"how-to/dpo", "methods/README", "fit"} <= site.found_docs
    trainer = pickle.loads((tmp_path / "trees" / "api" / "package.doctree").read_bytes()).astext()
    # What stands in for transformers is shown by the library's names, and hides no signature of ours.
    assert "Bases: ALoRAMixin, Trainer" in trainer and "stand_ins" not in trainer
    assert "RetentionGuard(general" in trainer


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
