"""A line at least every half minute: when it is said, and what it says."""

from __future__ import annotations

import logging

import pytest

from alora_trainer.basics.heartbeat import Heartbeat, duration

logger = logging.getLogger("test_heartbeat")


def said(caplog: pytest.LogCaptureFixture, seconds_a_step: float, steps: int, **settings: object) -> list[str]:
    caplog.clear()
    now = [0.0]
    heartbeat = Heartbeat("step", steps, logger, clock=lambda: now[0], **{"quiet": False, **settings})  # type: ignore[arg-type]
    with caplog.at_level(logging.INFO, logger.name):
        for step in range(1, steps + 1):
            now[0] += seconds_a_step
            heartbeat.beat(step, f"loss {step / 10}")
    return [record.message for record in caplog.records]


def test_a_line_every_half_minute_with_the_time_left(caplog: pytest.LogCaptureFixture) -> None:
    lines = said(caplog, 10.0, 12)
    assert lines == [
        "step 3 of 12, loss 0.3, 90 s left",
        "step 6 of 12, loss 0.6, 60 s left",
        "step 9 of 12, loss 0.9, 30 s left",
        "step 12 of 12, loss 1.2, 0 s left",
    ]
    assert len(said(caplog, 45.0, 4)) == 4  # slow steps: one line each
    assert said(caplog, 1.0, 20) == []  # over before there is anything to say
    assert said(caplog, 45.0, 4, quiet=True) == []


def test_what_was_done_before_does_not_make_it_look_fast(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    heartbeat = Heartbeat("step", 104, logger, clock=lambda: now[0], quiet=False)
    with caplog.at_level(logging.INFO, logger.name):
        for step in (101, 102):
            now[0] += 30
            heartbeat.beat(step)
    assert [record.message for record in caplog.records][-1] == "step 102 of 104, 60 s left"


def test_counted_in_pieces_and_without_an_end(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    with caplog.at_level(logging.INFO, logger.name):
        counted = Heartbeat("answers scored:", 100, logger, clock=lambda: now[0], quiet=False)
        endless = Heartbeat("batch", None, logger, clock=lambda: now[0], quiet=False)
        now[0] = 40
        counted.advance(20)
        endless.beat(7)
    assert [record.message for record in caplog.records] == ["answers scored: 20 of 100, 3 min left", "batch 7"]


@pytest.mark.parametrize(("seconds", "text"), [(5, "5 s"), (119, "119 s"), (180, "3 min"), (7200, "2.0 h")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
