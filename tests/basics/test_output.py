"""What the command lets through to the screen."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import warnings
from alora_trainer.basics.output import OlderSpelling, configure_output
configure_output()
warnings.warn("alora.save_storage is an older spelling: say map.storage", OlderSpelling)
warnings.warn("a library will change something", FutureWarning)
"""


def test_an_older_spelling_is_told_in_one_line_and_nothing_else_is() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stderr == "alora.save_storage is an older spelling: say map.storage\n"
