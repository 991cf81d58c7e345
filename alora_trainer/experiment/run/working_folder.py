"""A command's working folder: nobody else's while it works, and what the disk refuses in it is told in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alora_trainer.basics.disk_errors import disk_errors
from alora_trainer.basics.folder_lock import folder_lock


@contextmanager
def working_in(folder: Path, *inner: Path) -> Iterator[None]:
    """Hold the locks of a folder (and of some in it) while the block works there (see `folder_lock`).

    Raises:
        ALoRAError: another command works in one of them; or the disk refuses something, now or in the block.
    """
    with disk_errors(folder), contextlib.ExitStack() as held:
        for one in (folder, *inner):
            held.enter_context(folder_lock(one))
        yield
