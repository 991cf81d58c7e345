"""The documentation as a site: ``sphinx-build -W docs OUTPUT``, after ``pip install -c constraints.txt '.[docs]'``.

The pages are Markdown that reads as well where the repository is looked at, so two things are made out of them here: the
table of contents out of the lists in index.md, and working references out of links that lead to a folder beside docs/.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS)]  # autodoc imports the package as it is here, `setup` what stands beside this file

# What the package imports and its docstrings do not need.
_STOOD_IN_FOR = (
    *("accelerate", "bitsandbytes", "datasets", "deepspeed", "lm_eval", "matplotlib", "peft", "safetensors", "scipy"),
    *("torch", "transformers", "triton", "trl"),
)

(release,) = re.findall(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
project = "alora-trainer"
author = "The alora-trainer authors"
copyright = author
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "_templates"]
nitpicky = False

myst_heading_anchors = 4  # as GitHub names them
myst_enable_extensions = ["attrs_inline"]
suppress_warnings = ["myst.header"]  # a page may begin anew with a heading of the first level, as results do

default_role = "code"  # `names` in docstrings
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signature has them; Args says the rest
autodoc_class_signature = "mixed"
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_ivar = True
maximum_signature_line_length = 100

html_theme = "furo"
html_title = f"alora-trainer {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
templates_path = ["_templates"]
_SIDEBAR = ("brand", "search", "scroll-start", "navigation", "scroll-end")
if "tags" in globals() and tags.has("versioned"):  # noqa: F821  (Sphinx puts it there; build_site.py sets it)
    html_sidebars = {"**": [*(f"sidebar/{part}.html" for part in _SIDEBAR), "versions.html"]}
html_show_sphinx = False
html_copy_source = False

_SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
_ROW = re.compile(r"^\| \[([^\]]+)\]\(([\w-]+)\.md\)", re.MULTILINE)
_ENTRY = re.compile(r"^- \[([^\]]+)\]\(([^)#]+)\.md\)", re.MULTILINE)
_LEADING_OUT = re.compile(r"\[([^\]]*)\]\(((?:\.\./)+[^)#\s]*)(#[^)\s]*)?\)")


def contents_of(index: str) -> str:
    """A hidden table of contents for each section of index.md, of the pages that it lists."""
    parts = _SECTION.split(index)
    found = []
    for caption, text in zip(parts[1::2], parts[2::2], strict=True):
        found.append(_contents(_ENTRY.findall(text), caption))
    return "\n\n".join(found)


def _contents(entries: list[tuple[str, str]], caption: str = "") -> str:
    lines = "\n".join(f"{title.replace('`', '')} <{page}>" for title, page in entries)
    head = ":hidden:\n" + (f":caption: {caption}\n" if caption else "")
    return f"```{{toctree}}\n{head}\n{lines}\n```" if entries else ""


def without_links_to_folders(text: str, folder: Path) -> str:
    """Links that lead out of docs/: those to a file stay (it can be downloaded), to a folder or page become text."""

    def mended(found: re.Match[str]) -> str:
        label, target, _ = found.groups()
        path = (folder / target).resolve()
        if path == ROOT / "README.md":
            return f"[{label}]({'../' * len(folder.relative_to(DOCS).parts)}index.md)"
        if path.suffix == ".md" and DOCS not in path.parents:
            return f"{label} (`{path.relative_to(ROOT)}` in the repository)"
        return label if path.is_dir() else found.group()

    return _LEADING_OUT.sub(mended, text)


def _read(app: Any, page: str, source: list[str]) -> None:
    folder = (DOCS / page).parent
    source[0] = without_links_to_folders(source[0], folder)
    if page == "index":
        source[0] += "\n\n" + contents_of(source[0]) + "\n"
    if page == "methods/README":
        source[0] += "\n\n" + _contents([row for row in _ROW.findall(source[0]) if row[1] != "comparison"]) + "\n"


def _whole_sentence(app: Any, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    """Keep napoleon from taking what stands before a colon in a property's docstring for its type."""
    if what in ("property", "attribute"):
        lines[:0] = ["..", ""]  # an empty comment, which it takes for the first line


def setup(app: Any) -> None:
    from stand_ins import stand_in_for

    stand_in_for(_STOOD_IN_FOR)
    app.connect("source-read", _read)
    app.connect("autodoc-process-docstring", _whole_sentence, priority=400)  # before napoleon
