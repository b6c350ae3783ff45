"""The asyncio loop of a worker process, in a thread of its own, with start and stop hooks and a watchdog."""

import asyncio
import logging
import os
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable
from typing import Literal

try:
    import uvloop
except ImportError:  # no wheel for this platform
    new_event_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
else:
    new_event_loop = uvloop.new_event_loop

logger = logging.getLogger(__name__)

Hook = Callable[[], Awaitable[None]]

HOOK_TIMEOUT = 30.0  # seconds for all start hooks, or all stop hooks, together
CANCEL_GRACE = 10.0  # seconds a cancelled task gets to unwind while the worker stops

_start_hooks: list[Hook] = []
_stop_hooks: list[Hook] = []


def on_loop_start(hook: Hook) -> Hook:
    """Register an async callable to run on the loop before the first task; an error in it stops the worker."""
    _start_hooks.append(hook)
    return hook


def on_loop_stop(hook: Hook) -> Hook:
    """Register an async callable to run on the loop after the last task; the last registered runs first."""
    _stop_hooks.append(hook)
    return hook


def judge_silence(seconds: float, warn_after: float, exit_after: float) -> Literal["fine", "warn", "exit"]:
    """Say what a loop that has not answered for some seconds deserves."""
    if seconds >= exit_after:
        return "exit"
    return "warn" if seconds >= warn_after else "fine"


def format_stacks() -> str:
    """Return the stacks of all other threads as text."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
        if ident != threading.get_ident()
    )


class LoopThread:
    """One asyncio loop in a thread of its own, watched by a second thread that notices when it stops answering."""

    def __init__(self, warn_after: float, exit_after: float) -> None:
        self.loop = new_event_loop()
        self._warn_after, self._exit_after = warn_after, exit_after
        self._stopped = threading.Event()
        self._answered = True
        # Daemons: a blocked loop must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="asyncio-loop", daemon=True)
        self._watchdog = threading.Thread(target=self._watch, name="asyncio-watchdog", daemon=True)

    def start(self) -> None:
        """Start both threads, then run the start hooks; an error of theirs is raised after the loop is gone."""
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(_run_start_hooks(), self.loop).result(HOOK_TIMEOUT)
        except BaseException:
            self.stop()
            raise
        self._watchdog.start()

    def stop(self) -> None:
        """Run the stop hooks, cancel what is left and end the thread, all within bounds; a second call is harmless."""
        if self._stopped.is_set():
            return
        try:
            asyncio.run_coroutine_threadsafe(_wind_down(), self.loop).result(HOOK_TIMEOUT + CANCEL_GRACE)
        except TimeoutError:
            logger.error("the asyncio loop did not wind down in time")
        self._stopped.set()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(CANCEL_GRACE)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        while not self._stopped.is_set():
            try:
                self.loop.run_forever()
            except BaseException:  # a stray asyncio task raised SystemExit: the other tasks go on
                logger.exception("the asyncio loop was interrupted and continues")
        self.loop.close()

    def _watch(self) -> None:
        """Ping the loop; silence is summed from waits, so that a suspended process is not taken for a blocked one."""
        tick = min(1.0, self._warn_after / 4)
        silence, warned = 0.0, False
        while not self._stopped.wait(tick):
            if self._answered:
                silence, warned, self._answered = 0.0, False, False
                self.loop.call_soon_threadsafe(self._answer)
                continue
            silence += tick
            verdict = judge_silence(silence, self._warn_after, self._exit_after)
            if verdict != "fine" and not warned:
                warned = True
                logger.error("the asyncio loop has been blocked for %.0f s\n%s", silence, format_stacks())
            if verdict == "exit":
                logger.critical("the asyncio loop is still blocked after %.0f s: the process gives up", silence)
                os._exit(os.EX_SOFTWARE)

    def _answer(self) -> None:
        self._answered = True


async def _run_start_hooks() -> None:
    for hook in _start_hooks:
        await hook()


async def _wind_down() -> None:
    try:
        async with asyncio.timeout(HOOK_TIMEOUT):
            for hook in reversed(_stop_hooks):
                try:
                    await hook()
                except Exception:
                    logger.exception("a stop hook failed")
    except TimeoutError:
        logger.error("the stop hooks did not end in time")
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=CANCEL_GRACE / 2)
    await asyncio.get_running_loop().shutdown_asyncgens()
