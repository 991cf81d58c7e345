"""Patterns in an adapter's configuration, which PEFT matches against the name of every module: those that end soon.

A regular expression of a stranger can take longer than anybody waits: fourteen times ``.*``, a repeated group that itself
repeats. What people write is let through: names, alternatives of names, and a ``.*`` or two.
"""

from __future__ import annotations

import math
import re

_LONGEST = 2000
_LITERAL = re.compile(r"\^?(?:[\w.-]|\\\.)+")
_WILD = r"\.[*+]\??|\\d\+|\[0-9\]\+"
_GROUP = r"\((?:\?:)?(?:[\w.|-]|\\\.)+\)"
_PLAIN = re.compile(rf"\^?(?:{_WILD}|{_GROUP}|[\w-]|\\\.|\.(?![*+?{{]))+\$?")
# A name of n characters is tried about n**2 times the number of choices among alternatives.
_MOST_WILD, _MOST_CHOICES = 2, 500


def is_literal_name(text: object) -> bool:
    """Whether a text is the name of a module, or the end of one; ``^`` before it is its beginning, as PEFT has it."""
    return isinstance(text, str) and len(text) <= _LONGEST and _LITERAL.fullmatch(text) is not None


def is_plain_pattern(text: str) -> bool:
    """Whether a text is a regular expression whose matching ends soon, whatever it is matched against."""
    if len(text) > _LONGEST or _PLAIN.fullmatch(text) is None:
        return False
    choices = math.prod(group.count("|") + 1 for group in re.findall(_GROUP, text))
    return len(re.findall(_WILD, text)) <= _MOST_WILD and choices <= _MOST_CHOICES
