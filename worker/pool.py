"""A Celery worker pool that runs every task on one asyncio loop per process."""

import asyncio
import contextlib
import functools
import itertools
import logging
import os
import queue
import socket
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from billiard.einfo import ExceptionInfo
from celery._state import _task_stack
from celery.concurrency.base import BasePool
from celery.exceptions import ImproperlyConfigured, SoftTimeLimitExceeded, Terminated, TimeLimitExceeded
from celery.utils.threads import USE_FAST_LOCALS, get_ident
from celery.worker.state import active_requests
from sqlalchemy.util.concurrency import await_, greenlet_spawn

from worker.loop import CANCEL_GRACE, LoopThread

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
# Celery's (failed, return value or exception info, runtime in seconds), or what escaped its tracer.
Outcome = tuple[Any, ...] | BaseException

IDLE_TICK = 0.5  # seconds between looks around while the worker waits for its last tasks


class TaskCrashError(Exception):
    """The task raised something that is no ordinary error, such as SystemExit; it failed, the worker goes on."""


@dataclass(slots=True, eq=False)
class Job:
    """One task on its way through the pool; ``signal`` is set once it was told to end.

    ``ahead`` is awaited before Celery's tracer runs, which finds in ``ended`` what that returned or raised.
    """

    id: int
    target: Callable[..., Outcome]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    callbacks: dict[str, Callable[..., None]]
    soft_timeout: float | None
    timeout: float | None
    ahead: Callable[..., Coroutine[Any, Any, Any]] | None = None
    ended: tuple[Any, Exception | None] | None = None
    signal: int | None = None
    task: asyncio.Task[Outcome] | None = None


_current_job: ContextVar[Job | None] = ContextVar("current_job", default=None)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Wait for a coroutine from the synchronous body of a task.

    Raises SoftTimeLimitExceeded once the task's soft time limit has passed, else what the coroutine raises.
    """
    job = _current_job.get()
    if job is None or not job.soft_timeout:
        return await_(coroutine)
    return await_(_within_soft_limit(coroutine, job.soft_timeout))


def async_task(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Turn an ``async def`` into a task body for ``@app.task``; ``bind=True`` works, the request stays right."""

    @functools.wraps(function)
    def body(*args: P.args, **kwargs: P.kwargs) -> T:
        return run(function(*args, **kwargs))

    return body


def light_task(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Like `async_task`, in 10 kB less for each running task: Celery's tracer need not wait for it in a greenlet.

    The tracer learns how it ended: retries, failures and the runtime in events are as ever. But while it runs there is
    no current task or request (so no ``bind=True``); ``task_prerun`` and the tracer's own log lines come at its end.
    """

    @functools.wraps(function)
    def body(*args: P.args, **kwargs: P.kwargs) -> T:
        job = _current_job.get()
        if job is None or job.ended is None:
            return run(function(*args, **kwargs))
        result, error = job.ended
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    body.ahead = function  # type: ignore[attr-defined]
    return body


async def _within_soft_limit(coroutine: Coroutine[Any, Any, T], seconds: float) -> T:
    try:
        async with asyncio.timeout(seconds) as limit:
            return await coroutine
    except TimeoutError:
        if limit.expired():
            raise SoftTimeLimitExceeded(seconds) from None
        raise


async def _trace(job: Job) -> Outcome:
    """Run Celery's tracer and return how it ended; nothing is raised, since SystemExit would stop the loop."""
    _current_job.set(job)
    try:
        async with asyncio.timeout(job.timeout) as limit:
            if job.ahead is not None:
                return await _trace_afterwards(job, job.ahead)
            return await greenlet_spawn(job.target, *job.args, **job.kwargs)
    except TimeoutError as error:
        return TimeLimitExceeded(job.timeout) if limit.expired() else error
    except BaseException as error:
        return error


async def _trace_afterwards(job: Job, function: Callable[..., Coroutine[Any, Any, Any]]) -> Outcome:
    started, request = time.monotonic(), job.args[2]
    coroutine = function(*request["args"], **request["kwargs"])
    try:
        if job.soft_timeout:
            coroutine = _within_soft_limit(coroutine, job.soft_timeout)
        job.ended = await coroutine, None
    except Exception as error:
        job.ended = None, error
    try:
        failed, result, _ = job.target(*job.args, **job.kwargs)  # type: ignore[misc]
    finally:
        job.ended = None  # an error's traceback knows the job
    return failed, result, time.monotonic() - started


def _exception_info(error: BaseException) -> ExceptionInfo:
    """Wrap an error the way Celery's callbacks expect; one that is no ordinary error becomes TaskCrashError."""
    try:
        if isinstance(error, Exception) and not isinstance(error, MemoryError):
            raise error
        raise TaskCrashError(f"task raised {type(error).__name__}") from error
    except Exception:
        return ExceptionInfo()


def _ran_out_of_memory(outcome: tuple[Any, ...]) -> bool:
    failed, result, _ = outcome
    error = getattr(result, "exception", None) if failed else None
    return isinstance(getattr(error, "exc", error), MemoryError)


def _report(job: Job, outcome: Outcome) -> None:
    """Call exactly one of the job's closing callbacks."""
    if job.signal is not None:
        # Whatever it managed to return: Celery gave its message back or acknowledged it when it told the job to end.
        job.callbacks["error"](_exception_info(Terminated(job.signal)))
    elif isinstance(outcome, TimeLimitExceeded):
        job.callbacks["timeout"](False, job.timeout)
    elif isinstance(outcome, BaseException):
        job.callbacks["error"](_exception_info(outcome))
    elif _ran_out_of_memory(outcome):
        # Celery would raise it again in the main thread and never give the message's slot back.
        job.callbacks["error"](_exception_info(MemoryError()))
    else:
        job.callbacks["success"](outcome)


def _call_safely(function: Callable[..., None], *args: Any) -> None:
    try:
        function(*args)
    except Exception:
        logger.exception("a callback of the worker failed")


def _identity() -> Any:
    """Key of the running task in Celery's request stacks: the same before and after every await of one job."""
    return _current_job.get() or get_ident()


class AsyncioPool(BasePool):  # type: ignore[misc]  # celery ships no types
    """Set ``worker_pool = "worker.pool:AsyncioPool"``; the concurrency is the most tasks that run at once.

    Pool state and all callbacks belong to the worker's main thread; the loop's thread only runs coroutines and posts
    how they ended. So Celery sees each task accepted and closed exactly once, in order, and needs no locks.
    """

    body_can_be_buffer = True
    signal_safe = False

    patience = 20.0  # seconds that running tasks get to finish when the worker stops
    watchdog_warn_after = 30.0  # seconds of a blocked loop until all stacks are logged
    watchdog_exit_after = 120.0  # seconds of a blocked loop until the process exits with code 70

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.limit: int = self.limit or 1
        self._ids = itertools.count(1)
        self._waiting: deque[Job] = deque()
        self._running: dict[int, Job] = {}
        self._ended: queue.SimpleQueue[tuple[Job, Outcome]] = queue.SimpleQueue()
        self._delivery_due = False
        self._doorbell, self._doorbell_button = socket.socketpair()
        self._doorbell.setblocking(False)
        self._doorbell_button.setblocking(False)
        self._thread: LoopThread | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that runs the tasks; RuntimeError when the pool is not running."""
        return self._loop_thread.loop

    @property
    def _loop_thread(self) -> LoopThread:
        if self._thread is None:
            raise RuntimeError("the pool is not running")
        return self._thread

    # Life of the pool

    def on_start(self) -> None:
        """Start the loop; ImproperlyConfigured where Celery could not tell interleaved tasks apart."""
        if USE_FAST_LOCALS:
            raise ImproperlyConfigured("unset USE_FAST_LOCALS: it mixes up the requests of interleaved tasks")
        if self.options.get("threads"):
            raise ImproperlyConfigured("AsyncioPool needs a broker with an event loop, such as Redis")
        _task_stack.__ident_func__ = _identity
        for task in self.app.tasks.values() if self.app else ():
            task.request_stack.__ident_func__ = _identity
        thread = LoopThread(self.watchdog_warn_after, self.watchdog_exit_after)
        thread.start()
        self._thread = thread

    def register_with_event_loop(self, hub: Any) -> None:
        """Listen on the hub, which runs in the main thread, for tasks that ended; called after each reconnect."""
        # Not hub.call_soon: an acknowledgement queued from there waits until the next event, up to a second later.
        hub.add_reader(self._doorbell, self._deliver_ended)

    def flush(self) -> None:
        """Forget the tasks that have not begun: their messages went back to the queue with the lost connection."""
        self._waiting.clear()

    def on_close(self) -> None:
        """Begin no more tasks: the messages of the waiting ones return to the queue when the channel closes."""
        self._waiting.clear()

    def on_stop(self) -> None:
        """Wait for the running tasks, at most `patience` seconds; the messages of those that take longer go back."""
        self._waiting.clear()
        self._deliver_until_idle(self.patience)
        for request in tuple(active_requests) if self._running else ():
            request.cancel(self)
        self._deliver_until_idle(CANCEL_GRACE)
        if self._running:
            logger.error("%d cancelled tasks did not end in time and are left behind", len(self._running))
            self._running.clear()
        if self._thread is not None:
            self._thread.stop()
        self._doorbell.close()
        self._doorbell_button.close()

    def on_terminate(self) -> None:
        """Cancel the running tasks and stop; their messages return to the queue when the channel closes."""
        for job_id in list(self._running):
            self.terminate_job(job_id)
        self.on_stop()

    # Tasks

    def on_apply(
        self,
        target: Callable[..., Outcome],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        callback: Callable[..., None],
        error_callback: Callable[..., None],
        accept_callback: Callable[..., None],
        timeout_callback: Callable[..., None],
        soft_timeout: float | None = None,
        timeout: float | None = None,
        **_: Any,
    ) -> None:
        """Begin the task, or let it wait for a free slot; nothing to return, since a job is ended by its id."""
        callbacks = {
            "accept": accept_callback,
            "success": callback,
            "error": error_callback,
            "timeout": timeout_callback,
        }
        soft_timeout = soft_timeout or self.options.get("soft_timeout")
        timeout = timeout or self.options.get("timeout")
        task = self.app.tasks.get(args[0]) if self.app and args else None
        ahead = getattr(getattr(task, "run", None), "ahead", None)
        job = Job(next(self._ids), target, tuple(args), dict(kwargs), callbacks, soft_timeout, timeout, ahead)
        self._waiting.append(job)
        self._begin_waiting()

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """Cancel a running job by the id given to its accept callback; an unknown id is ignored."""
        job = self._running.get(pid)
        if job is not None and job.signal is None:
            job.signal = signal or 15
            self.loop.call_soon_threadsafe(self._cancel, job)

    def grow(self, n: int = 1) -> None:
        """Allow n more tasks at once."""
        self.limit += n
        self._begin_waiting()

    def shrink(self, n: int = 1) -> None:
        """Allow n fewer tasks at once, one at least; running tasks are not disturbed."""
        self.limit = max(1, self.limit - n)

    def _begin_waiting(self) -> None:
        while self._waiting and len(self._running) < self.limit:
            job = self._waiting.popleft()
            self._running[job.id] = job
            _call_safely(job.callbacks["accept"], job.id, time.monotonic())
            self.loop.call_soon_threadsafe(self._begin, job)

    def _begin(self, job: Job) -> None:
        job.task = self.loop.create_task(_trace(job))
        job.task.add_done_callback(functools.partial(self._post, job))
        if job.signal is not None:
            job.task.cancel()

    def _cancel(self, job: Job) -> None:
        if job.task is not None:
            job.task.cancel()

    # From the loop's thread to the main thread

    def _post(self, job: Job, task: asyncio.Task[Outcome]) -> None:
        job.task = None  # else job, task and the task's context would keep each other, and their messages, alive
        # Cancelled before its first step, the task has no result of its own.
        self._ended.put((job, asyncio.CancelledError() if task.cancelled() else task.result()))
        if not self._delivery_due:
            self._ring()

    def _ring(self) -> None:
        self._delivery_due = True
        with contextlib.suppress(OSError):  # closed: the main thread has stopped listening
            self._doorbell_button.send(b"\0")

    def _deliver_ended(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._doorbell.recv(4096)
        self._delivery_due = False
        try:
            for _ in range(self._ended.qsize()):
                self._deliver(*self._ended.get_nowait())
        except queue.Empty:
            return  # a signal handler that stopped the pool has delivered the rest
        finally:
            if not self._ended.empty():  # the worker is being terminated from within a callback
                self._ring()

    def _deliver(self, job: Job, outcome: Outcome) -> None:
        del self._running[job.id]
        _call_safely(_report, job, outcome)
        # A connection that the task opened keeps the task's context, and so the job, for as long as it stays open.
        job.args, job.kwargs, job.callbacks = (), {}, {}
        self._begin_waiting()

    def _deliver_until_idle(self, patience: float) -> None:
        """Deliver what ends until nothing runs, at most `patience` seconds, or ten once all were told to end."""
        deadline = time.monotonic() + patience
        while self._running and time.monotonic() < deadline:
            if all(job.signal is not None for job in list(self._running.values())):
                deadline = min(deadline, time.monotonic() + CANCEL_GRACE)
            with contextlib.suppress(queue.Empty):
                self._deliver(*self._ended.get(timeout=IDLE_TICK))

    def _get_info(self) -> dict[str, Any]:
        """Figures for ``inspect stats`` and Flower."""
        return {
            **super()._get_info(),
            "processes": [os.getpid()],
            "running": len(self._running),
            "waiting": len(self._waiting),
            "loop": type(self._thread.loop).__module__ if self._thread else "",
            "timeouts": [self.options.get("soft_timeout") or 0, self.options.get("timeout") or 0],
        }
