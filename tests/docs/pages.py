"""The pages of the documentation, their headings, links and code blocks, read without Sphinx."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
_FENCE = re.compile(r"^(```+)(\S*)[^\n]*\n(.*?)^\1 *$", re.DOTALL | re.MULTILINE)
_MARK = re.compile(r"<!-- ([^\n]*?) -->\n\Z")
# Blocks with a marker of their own, and who runs them.
_RUN_BY_OTHERS = {
    "first person": "tests/artefact/test_cards.py",
    "second person": "tests/artefact/test_cards.py",
    "demo command": ".ci/run",
    "test command": ".ci/run",
}
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")


@dataclass(frozen=True)
class Block:
    """One code block: in which page and line, in which language, and the comment right above it, if there is one."""

    page: str
    line: int
    language: str
    code: str
    mark: str

    @property
    def not_run(self) -> str | None:
        """Why it is not run; None where it is."""
        return self.mark.partition(":")[2].strip() if self.mark.startswith("not run") else None

    @property
    def run_by(self) -> str | None:
        """The file that runs it by the block's own marker; None where the documentation's tests do."""
        return _RUN_BY_OTHERS.get(self.mark)

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@cache
def pages() -> tuple[str, ...]:
    """README and all of docs/, relative to the repository."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
    return tuple(path.relative_to(ROOT).as_posix() for path in found if "_build" not in path.parts)


@cache
def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@cache
def blocks(page: str) -> tuple[Block, ...]:
    """A page's code blocks; directives of the site (their language is in braces) are none."""
    text, found = text_of(page), []
    for match in _FENCE.finditer(text):
        if not match.group(2).startswith("{"):
            mark = _MARK.search(text[: match.start()])
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(page, line, match.group(2), match.group(3), mark.group(1) if mark else ""))
    return tuple(found)


def links(page: str) -> list[str]:
    """Targets of a page's links and pictures, outside of code."""
    text = re.sub(r"`[^`\n]*`", "", _FENCE.sub("", text_of(page)))
    return _LINK.findall(text)


@cache
def anchors(page: str) -> frozenset[str]:
    """The anchors of a page's headings, as GitHub and the site name them."""
    found: list[str] = []
    for heading in re.findall(r"^#{1,6} +(.+?) *$", _FENCE.sub("", text_of(page)), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.replace("`", ""))
        anchor = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found.append(anchor if anchor not in found else f"{anchor}-{found.count(anchor)}")
    return frozenset(found)
