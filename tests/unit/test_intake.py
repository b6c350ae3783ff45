"""Pages are called for as fast as the store takes their answers, and no faster."""

import asyncio
from collections import deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.intake import Intake, next_window

BATCH, LANES = 8, 2
LEAST, MOST = 32, 40

CASES = {
    "the store waits and the window is full": ((100, 100, 8, 10), 102),
    "the store waits and the window is overfull": ((100, 130, 8, 31), 102),
    "the store waits, but for pages that nobody has asked for": ((100, 99, 8, 10), 100),
    "a single page widens it too": ((100, 100, 1, 1), 101),
    "there is enough to do": ((100, 100, 8, 32), 100),
    "enough at the upper end": ((100, 100, 8, 40), 100),
    "answers pile up": ((100, 100, 8, 41), 98),
    "answers pile up in a window that was never filled": ((1000, 60, 8, 50), 58),
    "it is narrow enough": ((41, 41, 8, 41), 40),
    "never narrower than what keeps the store busy": ((40, 40, 400, 400), 40),
}


@pytest.mark.parametrize(("given_", "expected"), CASES.values(), ids=CASES.keys())
def test_window_follows_the_store(given_: tuple[int, int, int, int], expected: int) -> None:
    window, in_hand, stored, unstored = given_
    assert next_window(window, in_hand=in_hand, stored=stored, unstored=unstored, least=LEAST, most=MOST) == expected


def intake() -> Intake:
    return Intake(batch=BATCH, lanes=LANES)


async def waiting(count: int, intake: Intake, **options: Any) -> list[asyncio.Task[None]]:
    """So many pages that ask to be let in, in this order."""
    tasks = [asyncio.create_task(intake.enter(**options)) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


async def test_pages_beyond_the_window_wait_and_go_in_as_they_came() -> None:
    door = intake()
    tasks = await waiting(MOST + 5, door)
    assert [task.done() for task in tasks] == [True] * MOST + [False] * 5
    assert (door.in_hand, len(door)) == (MOST, 5)
    for left in range(1, 4):
        door.leave()
        await asyncio.sleep(0)
        assert [task.done() for task in tasks[MOST:]] == [True] * left + [False] * (5 - left)
    await finished(door, tasks[MOST + 3 :])


async def test_urgent_pages_wait_for_nobody() -> None:
    door = intake()
    tasks = await waiting(MOST + 1, door)
    assert all(task.done() for task in await waiting(3, door, urgent=True))
    assert door.in_hand == MOST + 3
    for _ in range(3):
        door.leave()
    await asyncio.sleep(0)
    assert not tasks[-1].done()
    await finished(door, tasks[MOST:])


async def test_who_is_cancelled_in_the_line_or_at_the_door_takes_no_room() -> None:
    door = intake()
    tasks = await waiting(MOST + 3, door)
    tasks[MOST].cancel()
    await asyncio.sleep(0)
    door.leave()  # the next one is let in, but is cancelled before it knows
    tasks[MOST + 1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert [task.cancelled() for task in tasks[MOST:]] == [True, True, False]
    assert (door.in_hand, len(door)) == (MOST, 0)


async def test_while_nothing_is_answered_the_window_opens_by_itself() -> None:
    door = intake()
    await finished(door, await waiting(MOST * 5, door))
    assert door.window >= MOST * 5


async def test_while_answers_wait_for_a_database_that_is_away_it_stays_as_it_is() -> None:
    door = intake()
    tasks = await waiting(MOST + 1, door)
    door.answered()
    ticks = asyncio.create_task(intake_of_its_own())
    async with asyncio.timeout(10):
        await ticks
    assert (door.window, tasks[-1].done()) == (MOST, False)
    door.stored(1)
    await finished(door, tasks[MOST:])


async def intake_of_its_own() -> None:
    """As long as another window takes to open by three steps."""
    door = intake()
    await finished(door, await waiting(MOST + 3 * BATCH, door))


async def finished(door: Intake, tasks: list[asyncio.Task[None]]) -> None:
    async with asyncio.timeout(10):
        await asyncio.gather(*tasks)
    assert len(door) == 0


@given(st.lists(st.sampled_from(["enter", "urgent", "answer", "store", "cancel", "fail"]), max_size=300))
def test_whatever_happens_room_is_used_and_none_is_lost(steps: list[str]) -> None:
    asyncio.run(_play(steps))


async def _play(steps: list[str]) -> None:
    door = Intake(batch=2, lanes=1)
    entering, called, answered = deque[asyncio.Task[None]](), 0, 0
    for step in steps:
        match step:
            case "enter" | "urgent":
                entering.append(asyncio.create_task(door.enter(urgent=step == "urgent")))
            case "answer" if called:
                door.answered()
                called, answered = called - 1, answered + 1
            case "store" if answered:
                count = min(answered, 2)
                door.stored(count)
                answered -= count
                for _ in range(count):
                    door.leave()
            case "fail" if called:  # a duplicate, or a page that was cancelled while it was called for
                door.leave()
                called -= 1
            case "cancel" if entering:
                entering[-1].cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        called += sum(task.done() and not task.cancelled() for task in entering)
        entering = deque(task for task in entering if not task.done())
        assert door.in_hand == called + answered
        assert len(entering) <= len(door)
        assert not entering or door.in_hand >= door.window  # nobody waits beside free room
    for task in entering:
        task.cancel()
    await asyncio.gather(*entering, return_exceptions=True)
