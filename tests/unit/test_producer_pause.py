"""The producer looks again before the workers run dry, and soon where somebody waits."""

from typing import Any

import pytest

from producer.loop import BUSY_PAUSE, RELAXED_PAUSE, next_pause

BUSY: dict[str, Any] = {"finished": 50, "seconds": 0.1, "reserve": 1000, "urgent": False}

CASES = {
    "workers have work for two seconds": ({}, RELAXED_PAUSE),
    "for as long as two pauses": ({"reserve": 300}, RELAXED_PAUSE),
    "for less: half of that": ({"reserve": 200}, 0.2),
    "for next to nothing": ({"reserve": 10}, BUSY_PAUSE),
    "nothing waits for a worker": ({"reserve": 0}, BUSY_PAUSE),
    "fewer pages are out than the workers hold": ({"reserve": -400}, BUSY_PAUSE),
    "nothing has come back: a slow API": ({"finished": 0}, RELAXED_PAUSE),
    "nothing has come back, and nothing waits": ({"finished": 0, "reserve": 0}, BUSY_PAUSE),
    "the first look": ({"seconds": float("inf")}, RELAXED_PAUSE),
    "urgent pages are out": ({"urgent": True}, BUSY_PAUSE),
}


@pytest.mark.parametrize(("told", "pause"), CASES.values(), ids=CASES.keys())
def test_next_look(told: dict[str, Any], pause: float) -> None:
    assert next_pause(**BUSY | told) == pytest.approx(pause)
