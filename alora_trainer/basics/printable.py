"""Texts of strangers on a terminal and in Markdown: what they say, and nothing that they would do."""

from __future__ import annotations

import re
import unicodedata

_CONTROLS = ("Cc", "Cs", "Zl", "Zp")
# Marks that change the direction or the order of what is shown, or that nobody sees.
_MARKS = "\u061c\u200b\u200e\u200f\u2060\ufeff" + "".join(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))
_MARKDOWN = re.compile(r"[\\`*\[\]|]")


def printable(text: str) -> str:
    """`text` with control characters (escape sequences begin with one) and marks of direction spelled out, as ``\\x1b``."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character in "\n\t" or not (character in _MARKS or unicodedata.category(character) in _CONTROLS):
        return character
    return character.encode("unicode_escape").decode("ascii")


def markdown_text(text: str) -> str:
    """`text` in a line of Markdown: no tag, link, image, code, emphasis or cell of a table comes of it."""
    line = " ".join(printable(text).split())
    return _MARKDOWN.sub(r"\\\g<0>", line.replace("<", "&lt;"))
