"""The one exception that stands for a user's mistake."""

from __future__ import annotations


class ALoRAError(ValueError):
    """Something the caller gave cannot be used; the message says what is wrong and what to do, in one line.

    The command line prints the message without a traceback and exits with status 2. Everything else that is raised is a
    fault of ours or of the machine, and keeps its traceback.
    """
