"""Build the site of this version beside those of others: ``python docs/build_site.py FOLDER``.

FOLDER/VERSION/ gets the pages, FOLDER/versions.html lists the versions that are there, newest first, and FOLDER/index.html
leads to the newest. A version that is there is made anew; the others stay as they are.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
_NUMBER = re.compile(r"\d+|[a-z]+")


def own_version() -> str:
    """The version in pyproject.toml."""
    text = (DOCS.parent / "pyproject.toml").read_text(encoding="utf-8")
    return re.findall(r'^version = "(.+)"', text, re.MULTILINE)[0]


def newest_first(names: list[str]) -> list[str]:
    """Versions in their order: by number, and 1.0 before its release candidates."""

    def key(name: str) -> tuple[tuple[int, int, str], ...]:
        parts = [(0, int(part), "") if part.isdigit() else (-2, 0, part) for part in _NUMBER.findall(name)]
        return (*parts, (-1, 0, ""))

    return sorted(names, key=key, reverse=True)


def write_lists(folder: Path) -> None:
    """versions.html and index.html, by the folders that have an index.html."""
    names = newest_first([path.parent.name for path in folder.glob("*/index.html")])
    items = "".join(f'<li><a href="{name}/index.html">{name}</a></li>' for name in names)
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
    (folder / "versions.html").write_text(
        f"{head}<title>alora-trainer: versions</title><h1>Versions of the documentation</h1><ul>{items}</ul></html>\n",
        encoding="utf-8",
    )
    first = f"{names[0]}/index.html"
    (folder / "index.html").write_text(
        f'{head}<title>alora-trainer</title><meta http-equiv="refresh" content="0; url={first}">'
        f'<p><a href="{first}">The documentation of alora-trainer {names[0]}</a></p></html>\n',
        encoding="utf-8",
    )


def main() -> int:
    folder = Path(sys.argv[1])
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        str(DOCS),
        str(folder / own_version()),
    ]
    status = subprocess.run([*command, "-t", "versioned", "-d", str(folder / ".doctrees")], check=False).returncode
    if status == 0:
        write_lists(folder)
    return status


if __name__ == "__main__":
    sys.exit(main())
