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


PROGRESS = """
import logging, sys
from alora_trainer.basics.output import configure_output, quiet_output, tell_loading
configure_output()
{quiet}
tell_loading()
logging.getLogger("alora_trainer.somewhere").info("step 3 of 9")
logging.getLogger("alora_trainer.somewhere").warning("little text")
from tqdm import tqdm
list(tqdm(range(3)))
sys.modules["torch"] = None
tell_loading()
"""


def test_quiet_leaves_warnings() -> None:
    loud, quiet = (
        subprocess.run(
            [sys.executable, "-c", PROGRESS.format(quiet=said)], capture_output=True, text=True, check=True
        ).stderr
        for said in ("", "quiet_output()")
    )
    assert loud.startswith("loading PyTorch and what is built on it\nstep 3 of 9\nlittle text\n") and "3/3" in loud
    assert loud.count("loading") == 1  # it is said before, and not once it is there
    assert quiet == "little text\n"
