"""Urgent pages go first, and starve nobody."""

import itertools

import pytest

from worker.permits import Waiter
from worker.waiting import Line

numbers = itertools.count()


async def queue(line: Line, priority: int, count: int = 1) -> list[Waiter]:
    waiters = [Waiter((priority, next(numbers)), None, None, "a") for _ in range(count)]
    for waiter in waiters:
        line.add(waiter)
    return waiters


def served(line: Line, count: int) -> list[int]:
    return [line.pop().order[0] for _ in range(count)]


@pytest.mark.parametrize(("share", "urgent"), [(0.9, 90), (0.5, 50), (0.75, 75), (1.0, 100)])
async def test_while_both_wait_urgent_ones_get_their_share_evenly(share: float, urgent: int) -> None:
    line = Line(share)
    await queue(line, 5, 200)
    await queue(line, 0, 200)
    order = served(line, 100)
    assert order.count(0) in {urgent, urgent + 1}
    assert order[0] == 0
    longest = max(len(list(group)) for priority, group in itertools.groupby(order) if priority == 0)
    assert share == 1 or longest <= round(1 / (1 - share))


async def test_whoever_waits_alone_gets_every_turn_and_saves_nothing_up() -> None:
    line = Line(0.9)
    await queue(line, 5, 50)
    assert served(line, 50) == [5] * 50
    await queue(line, 0, 20)
    assert served(line, 5) == [0] * 5
    await queue(line, 5)
    assert served(line, 9) == [0] * 9


async def test_equals_are_served_as_they_came_and_more_urgent_ones_first() -> None:
    line = Line(0.9)
    late = await queue(line, 6, 2)
    normal = await queue(line, 5, 3)
    assert [line.pop() for _ in range(5)] == [*normal, *late]


async def test_those_who_gave_up_have_no_turn() -> None:
    line = Line(0.9)
    first, second = await queue(line, 5, 2)
    gone = await queue(line, 0, 2)
    for waiter in (*gone, first):
        waiter.future.cancel()
    assert line.pop() is second
    assert not line
    with pytest.raises(IndexError):
        line.pop()
