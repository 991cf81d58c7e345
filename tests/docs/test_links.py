"""Every relative link of the documentation leads to a file, and to a heading in it; every page is in the index."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import DOCS, ROOT, anchors, links, pages, text_of


@pytest.mark.parametrize("page", pages())
def test_relative_links_and_anchors_lead_somewhere(page: str) -> None:
    wrong = []
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        path = ((ROOT / page).parent / target).resolve() if target else ROOT / page
        if not path.exists():
            wrong.append(f"{link}: there is no such file")
        elif anchor and path.suffix == ".md" and anchor not in anchors(path.relative_to(ROOT).as_posix()):
            wrong.append(f"{link}: there is no such heading")
    assert wrong == []


@pytest.mark.parametrize("page", pages())
def test_files_of_the_repository_that_a_page_names_exist(page: str) -> None:
    named = re.findall(
        r"`((?:tests|recipes|benchmarks|examples|alora_trainer|results)/[\w/.-]+\.\w+)(?:::(\w+))?[^`]*`", text_of(page)
    )
    named = [
        (name, test) for name, test in named if not re.search(r"[A-Z]{4}", name)
    ]  # penalty-DEVICE.json stands for several
    wrong = [name for name, _ in named if not (ROOT / name).is_file()]
    for name, test in named:
        if test and name not in wrong and f"def {test}(" not in (ROOT / name).read_text(encoding="utf-8"):
            wrong.append(f"{name}::{test}")
    assert wrong == []


def test_links_outside_code_are_seen_and_headings_named_as_github_does() -> None:
    assert "method.md#importance-in-a-basis-one-idea-three-cases" in links("docs/recording.md")
    assert "how-strong-by-what-it-may-cost-budget" in anchors("docs/penalty.md")
    assert "curvature-beside-its-rivals" in anchors("docs/methods/comparison.md")


def test_every_page_is_in_the_index_or_in_that_of_the_methods() -> None:
    listed = {(DOCS / link).resolve() for link in links("docs/index.md")}
    listed |= {(DOCS / "methods" / link).resolve() for link in links("docs/methods/README.md")}
    there = {ROOT / page for page in pages() if page.startswith("docs/")} - {DOCS / "index.md"}
    assert sorted(path.relative_to(ROOT).as_posix() for path in there - listed) == []


def test_the_index_has_a_line_for_what_the_site_makes_its_contents_of() -> None:
    """The site's table of contents is made of lines that begin with a link (docs/conf.py)."""
    index = text_of("docs/index.md")
    lines = [line for line in index.splitlines() if line.startswith("- ")]
    assert len(lines) > 20 and all(re.fullmatch(r"- \[[^\]]+\]\([\w./-]+\.md\)", line) for line in lines)
