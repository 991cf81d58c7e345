"""A bar at a terminal, lines without one, and neither where it is switched off."""

from __future__ import annotations

import fcntl
import logging
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from alora_trainer.basics import heartbeat
from alora_trainer.basics.progress import ShownProgress, length_of

logger = logging.getLogger("test_progress")

CODE = """
import logging
from alora_trainer.basics.output import configure_output, quiet_output
configure_output()
{quiet}
from alora_trainer.basics.progress import ShownProgress
own = logging.getLogger("alora_trainer.somewhere")
with ShownProgress("measuring", 4, own, unit="samples", first=1) as progress:
    progress.advance(2, "loss 2.5")
    own.info("a line of the log")
    progress.advance()
"""


def test_lines_without_a_terminal(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(heartbeat.Heartbeat.__init__, "__kwdefaults__", {
        **heartbeat.Heartbeat.__init__.__kwdefaults__, "clock": lambda: now[0]
    })  # fmt: skip
    with (
        caplog.at_level(logging.INFO, logger.name),
        ShownProgress("measuring", 9, logger, unit="samples", first=3) as one,
    ):
        one.advance()
        now[0] = 30
        one.advance(1, "loss 2.5")
    assert [record.message for record in caplog.records] == ["measuring: samples 5 of 9, loss 2.5, 60 s left"]
    caplog.clear()
    with ShownProgress("measuring", 9, logger, unit="samples", quiet=True) as one:
        now[0] = 90
        one.advance()
    assert not caplog.records


def drawn(quiet: str, columns: int = 60, **environment: str) -> str:
    """What a terminal is sent."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    command = [sys.executable, "-c", CODE.format(quiet=quiet)]
    root = Path(__file__).resolve().parents[2]
    given = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    with subprocess.Popen(command, stderr=theirs, stdout=theirs, cwd=root, env=given | environment) as process:
        os.close(theirs)
        said = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            said += part
    assert process.returncode == 0
    return said.decode()


def test_a_bar_at_a_terminal_unless_it_is_to_be_quiet() -> None:
    said = drawn("")
    assert "measuring:  25%" in said and "1/4" in said and "3/4" in said
    assert "\ra line of the log\r\n" in said  # on a line of its own: the bar was taken away before
    assert "\x1b[3" not in said  # no colours, with NO_COLOR or without
    assert drawn("quiet_output()") == ""
    for other in (drawn("", TQDM_DISABLE="1"), drawn("", columns=0)):
        assert other == "a line of the log\r\n"


def test_lengths() -> None:
    from torch.utils.data import DataLoader, IterableDataset

    class Stream(IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[int]:
            yield 1

    assert length_of([1, 2]) == 2 and length_of(iter([1])) is None
    assert length_of(DataLoader(Stream())) is None
    assert length_of(DataLoader([1, 2, 3], batch_size=2)) == 2  # type: ignore[arg-type]
