"""The asyncio pool closes every task exactly once, whatever the task or the worker does."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery.exceptions import ImproperlyConfigured
from hypothesis import given
from hypothesis import strategies as st

import worker.loop
import worker.pool
from tests.servers import wait_until
from worker.loop import judge_silence, on_loop_start, on_loop_stop
from worker.pool import AsyncioPool, TaskCrashError, run


class Calls:
    """Records the callbacks of jobs in the order they come."""

    def __init__(self, pool: AsyncioPool) -> None:
        self.pool = pool
        self.accepted: list[int] = []
        self.closed: list[tuple[str, Any]] = []

    def apply(self, target: Callable[..., Any], *args: Any, **limits: float) -> None:
        self.pool.apply_async(
            target,
            args,
            accept_callback=lambda pid, _: self.accepted.append(pid),
            callback=lambda outcome: self.closed.append(("success", outcome)),
            error_callback=lambda info: self.closed.append(("error", _error_of(info))),
            timeout_callback=lambda soft, limit: self.closed.append(("timeout", (soft, limit))),
            correlation_id="an-id",
            **limits,
        )


class Hub:
    """A hub that runs its readers when told to."""

    def __init__(self) -> None:
        self.readers: dict[Any, Callable[[], None]] = {}

    def add_reader(self, fd: Any, callback: Callable[[], None]) -> None:
        self.readers[fd] = callback

    def turn_until(self, condition: Callable[[], bool]) -> None:
        def holds() -> bool:
            for callback in self.readers.values():
                callback()
            return condition()

        wait_until(holds, within=10)


def _error_of(info: Any) -> BaseException:
    error = info.exception
    return getattr(error, "exc", error)  # type: ignore[no-any-return]


@pytest.fixture
def pool() -> Iterator[AsyncioPool]:
    pool = AsyncioPool(limit=2)
    pool.start()
    yield pool
    pool.terminate()


@pytest.fixture
def calls(pool: AsyncioPool) -> Calls:
    return Calls(pool)


def succeed(value: object = None) -> tuple[int, object, float]:
    """What Celery's tracer returns for a success."""
    return 0, value, 0.0


def wait_forever() -> None:
    run(asyncio.Event().wait())


def raise_(error: BaseException) -> None:
    raise error


async def swallow_cancellation(begun: threading.Event) -> None:
    begun.set()
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return


async def refuse_to_end(begun: threading.Event) -> None:
    begun.set()
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            continue


def test_outcomes_reach_celery_in_the_main_thread_and_free_the_slot(pool: AsyncioPool, calls: Calls) -> None:
    hub = Hub()
    pool.register_with_event_loop(hub)
    for number in range(4):
        calls.apply(succeed, number)
    assert len(calls.accepted) == 2
    assert calls.closed == []
    hub.turn_until(lambda: len(calls.closed) == 4)
    assert sorted(outcome[1] for _, outcome in calls.closed) == [0, 1, 2, 3]
    assert len(set(calls.accepted)) == 4


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError(), MemoryError()])
def test_what_escapes_the_tracer_fails_the_task_only(pool: AsyncioPool, calls: Calls, error: BaseException) -> None:
    calls.apply(raise_, error)
    calls.apply(succeed)
    pool.stop()
    failure = dict(calls.closed)["error"]
    assert isinstance(failure, TaskCrashError)
    assert failure.__cause__ is error
    assert sorted(kind for kind, _ in calls.closed) == ["error", "success"]


def test_an_ordinary_error_of_the_tracer_is_passed_on_as_it_is(pool: AsyncioPool, calls: Calls) -> None:
    error = ValueError("from the tracer")
    calls.apply(raise_, error)
    pool.stop()
    assert calls.closed == [("error", error)]


def test_a_terminated_task_never_counts_as_a_success(pool: AsyncioPool, calls: Calls) -> None:
    begun = threading.Event()
    calls.apply(lambda: succeed(run(swallow_cancellation(begun))))
    assert begun.wait(10)
    pool.terminate_job(calls.accepted[0], 15)
    pool.terminate_job(calls.accepted[0], 9)
    pool.terminate_job(12345)
    pool.stop()
    ((kind, error),) = calls.closed
    assert (kind, type(error).__name__, error.args) == ("error", "Terminated", (15,))


def test_a_task_terminated_while_it_is_accepted_does_not_run(pool: AsyncioPool) -> None:
    ran, closed = [], []

    def terminate(pid: int, _: float) -> None:
        pool.terminate_job(pid, 15)

    ignore: Callable[..., None] = lambda *_: None  # noqa: E731  # the other callbacks
    pool.apply_async(
        lambda: ran.append(1),
        accept_callback=terminate,
        callback=ignore,
        error_callback=lambda info: closed.append(_error_of(info)),
        timeout_callback=ignore,
    )
    pool.stop()
    assert ran == []
    assert [type(error).__name__ for error in closed] == ["Terminated"]


def test_a_hard_limit_cancels_and_a_soft_limit_lets_the_task_answer(pool: AsyncioPool, calls: Calls) -> None:
    calls.apply(wait_forever, timeout=0.05)
    calls.apply(wait_forever, soft_timeout=0.05, timeout=60)
    pool.stop()
    outcomes = dict(calls.closed)
    assert outcomes["timeout"] == (False, 0.05)
    assert type(outcomes["error"]).__name__ == "SoftTimeLimitExceeded"


def test_growing_begins_waiting_tasks_and_shrinking_keeps_one_slot(pool: AsyncioPool, calls: Calls) -> None:
    for _ in range(5):
        calls.apply(wait_forever)
    assert (len(calls.accepted), pool.info["waiting"]) == (2, 3)
    pool.grow(2)
    assert (len(calls.accepted), pool.num_processes, pool.info["running"]) == (4, 4, 4)
    pool.shrink(10)
    assert pool.num_processes == 1


def test_a_lost_connection_forgets_the_tasks_that_have_not_begun(pool: AsyncioPool, calls: Calls) -> None:
    for _ in range(3):
        calls.apply(succeed)
    pool.flush()
    pool.stop()
    assert len(calls.accepted) == len(calls.closed) == 2


def test_a_failing_callback_costs_no_slot(pool: AsyncioPool, calls: Calls) -> None:
    pool.limit = 1
    calls.apply(succeed)
    calls.closed = None  # type: ignore[assignment]  # makes the callback fail
    pool.stop()
    assert pool.info["running"] == 0


def test_stopping_leaves_a_task_behind_that_ignores_its_cancellation(
    pool: AsyncioPool, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.pool, "CANCEL_GRACE", 1.0)
    monkeypatch.setattr(worker.loop, "CANCEL_GRACE", 1.0)
    begun = threading.Event()
    calls.apply(lambda: run(refuse_to_end(begun)))
    assert begun.wait(10)
    loop = pool.loop
    pool.terminate()
    assert calls.closed == []
    assert loop.is_closed()


def test_hooks_run_on_the_loop_around_all_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.loop, "_start_hooks", [])
    monkeypatch.setattr(worker.loop, "_stop_hooks", [])
    happened: list[str] = []

    @on_loop_start
    async def start() -> None:
        happened.append(f"start in {threading.current_thread().name}")

    @on_loop_stop
    async def stop_last() -> None:
        happened.append("stop last")

    @on_loop_stop
    async def fail() -> None:
        raise OSError

    pool = AsyncioPool(limit=1)
    pool.start()
    Calls(pool).apply(lambda: happened.append("task"))
    pool.stop()
    assert happened == ["start in asyncio-loop", "task", "stop last"]


def test_a_failing_start_hook_stops_the_worker_and_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail() -> None:
        raise OSError("no database")

    monkeypatch.setattr(worker.loop, "_start_hooks", [fail])
    pool = AsyncioPool(limit=1)
    with pytest.raises(OSError, match="no database"):
        pool.start()
    pool.stop()
    assert "asyncio-loop" not in {thread.name for thread in threading.enumerate()}


def test_the_pool_refuses_surroundings_in_which_requests_would_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.pool, "USE_FAST_LOCALS", "1")
    pool = AsyncioPool(limit=1)
    with pytest.raises(ImproperlyConfigured, match="USE_FAST_LOCALS"):
        pool.start()
    pool.stop()


def test_the_pool_refuses_a_broker_without_an_event_loop() -> None:
    pool = AsyncioPool(limit=1, threads=True)
    with pytest.raises(ImproperlyConfigured, match="Redis"):
        pool.start()
    pool.stop()


@given(st.floats(0, 1000), st.floats(1, 100), st.floats(0, 100))
def test_a_silent_loop_is_first_reported_and_then_ended(silence: float, warn_after: float, more: float) -> None:
    verdict = judge_silence(silence, warn_after, warn_after + more)
    assert (verdict == "fine") == (silence < warn_after)
    assert (verdict == "exit") == (silence >= warn_after + more)
