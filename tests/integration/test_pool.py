"""A real Celery worker on the asyncio pool keeps what stock Celery promises."""

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from celery import Celery

from tests.servers import wait_until

ROOT = Path(__file__).parents[2]
WITHIN = 60.0  # seconds; far more than any of these needs, the 20 s of patience included


class PoolWorker:
    """A worker process, its broker and the journal its tasks write."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, broker: "redis.Redis", app: Celery) -> None:
        self.process, self.log, self.broker, self.app = process, log, broker, app

    def send(self, task: str, *args: object) -> str:
        return str(self.app.send_task(task, args, queue="pool").id)

    def journal(self, word: str) -> list[list[str]]:
        """What the tasks noted after the word, in order."""
        lines = [str(line).split() for line in self.broker.lrange("journal", 0, -1)]
        return [line[1:] for line in lines if line[0] == word]

    def wait(self, condition: Callable[[], bool]) -> None:
        try:
            wait_until(condition, within=WITHIN)
        except TimeoutError:
            pytest.fail(f"journal {self.broker.lrange('journal', 0, -1)}\nlog {self.log.read_text()[-5000:]}")

    def wait_for(self, word: str, count: int) -> None:
        self.wait(lambda: len(self.journal(word)) >= count)

    def left(self) -> tuple[int, int]:
        """Messages in the queue and unacknowledged ones."""
        return int(self.broker.llen("pool")), int(self.broker.hlen("unacked"))

    def end(self, signum: signal.Signals) -> int:
        self.process.send_signal(signum)
        return self.process.wait(WITHIN)


@pytest.fixture
def broker(redis_url: str) -> Iterator["redis.Redis"]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


@pytest.fixture
def start(redis_url: str, broker: "redis.Redis", tmp_path: Path) -> Iterator[Callable[..., PoolWorker]]:
    """Start a worker with a concurrency and extra environment."""
    processes: list[subprocess.Popen[bytes]] = []
    app = Celery(broker=redis_url, set_as_current=False)

    def start_worker(concurrency: int, **environment: str) -> PoolWorker:
        log = tmp_path / f"worker{len(processes)}.log"
        command = [sys.executable, "-m", "celery", "-A", "tests.integration.pool_app", "worker"]
        command += ["-c", str(concurrency), "--loglevel", "INFO", "--without-gossip", "--without-mingle"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "POOL_BROKER": redis_url, **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        processes.append(process)
        worker = PoolWorker(process, log, broker, app)
        worker.wait(lambda: " ready." in log.read_text())
        return worker

    yield start_worker
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()
    app.close()


def test_tasks_interleave_in_one_process_and_each_keeps_its_own_request(start: Callable[..., PoolWorker]) -> None:
    worker = start(30)
    ids = {f"nap{number}": worker.send("nap", f"nap{number}", 0.2) for number in range(15)}
    for number in range(15):
        worker.send("linger", f"linger{number}", "open")
    worker.wait_for("end", 15)
    worker.wait(lambda: worker.broker.get("running") == "15")
    assert dict(worker.journal("end")) == ids
    assert {name: task_id for name, task_id in worker.journal("begin") if name in ids} == ids
    worker.broker.set("open", 1)
    worker.wait(lambda: worker.left() == (0, 0))


@pytest.mark.parametrize("tasks", ["plain", "light"])
def test_nothing_a_task_raises_costs_a_slot_or_a_second_run(start: Callable[..., PoolWorker], tasks: str) -> None:
    worker = start(1, POOL_TASKS=tasks)
    for kind in ("exit", "interrupt", "cancel", "memory", "greenlet", "error"):
        worker.send("crash", kind)
    for task in ("crash_plainly", "limited", "soft_limited"):
        worker.send(task)
    worker.send("nap", "last", 0)
    worker.wait_for("end", 1)
    worker.wait(lambda: worker.left() == (0, 0))
    log = worker.log.read_text()
    assert Counter(re.findall(r"task raised (\w+)'", log)) == {
        "SystemExit": 2,
        "KeyboardInterrupt": 1,
        "CancelledError": 1,
        "MemoryError": 1,
        "GreenletExit": 1,
    }
    assert log.count("Hard time limit (0.2s) exceeded for limited") == 1
    assert "SoftTimeLimitExceeded" in log
    assert worker.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("tasks", ["plain", "light"])
def test_revoke_with_terminate_cancels_the_coroutine_and_frees_its_slot(
    start: Callable[..., PoolWorker], tasks: str
) -> None:
    worker = start(1, POOL_TASKS=tasks)
    task_id = worker.send("linger", "doomed", "never")
    worker.wait_for("begin", 1)
    worker.app.control.revoke(task_id, terminate=True)
    worker.wait_for("cancelled", 1)
    worker.send("nap", "next", 0)
    worker.wait_for("end", 1)
    worker.wait(lambda: worker.left() == (0, 0))


def test_remote_control_grows_and_shrinks_the_concurrency(start: Callable[..., PoolWorker]) -> None:
    worker = start(1)
    for number in range(8):
        worker.send("linger", f"early{number}", f"early{number}")
    worker.wait_for("begin", 1)
    worker.app.control.pool_grow(4)
    worker.wait_for("begin", 5)
    (stats,) = worker.app.control.inspect().stats().values()
    assert stats["pool"]["max-concurrency"] == stats["prefetch_count"] == stats["pool"]["running"] == 5
    assert stats["pool"]["processes"] == [worker.process.pid]
    worker.app.control.pool_shrink(3)
    for number in range(8):
        worker.broker.set(f"early{number}", 1)
    worker.wait_for("end", 8)
    for number in range(4):
        worker.send("linger", f"late{number}", "late")
    worker.wait(lambda: worker.broker.get("running") == "2")
    worker.broker.set("late", 1)
    worker.wait_for("end", 12)
    assert max(int(running) for name, running in worker.journal("begin") if name.startswith("late")) == 2


@pytest.mark.parametrize("tasks", ["plain", "light"])
def test_sigterm_finishes_and_acknowledges_what_runs_and_takes_nothing_new(
    start: Callable[..., PoolWorker], tasks: str
) -> None:
    worker = start(3, POOL_TASKS=tasks)
    for number in range(5):
        worker.send("linger", f"task{number}", "open")
    worker.wait_for("begin", 3)
    worker.process.send_signal(signal.SIGTERM)
    worker.wait(lambda: "Warm shutdown" in worker.log.read_text())
    worker.broker.set("open", 1)
    assert worker.process.wait(WITHIN) == 0
    assert len(worker.journal("end")) == len(worker.journal("begin")) == 3
    assert worker.left() == (2, 0)
    assert worker.broker.lrange("journal", 0, 0) == ["loop-start"]
    assert worker.broker.lrange("journal", -1, -1) == ["loop-stop"]


@pytest.mark.parametrize("soft_shutdown", [pytest.param("0", marks=pytest.mark.slow), "0.5"])
def test_sigquit_cancels_what_runs_and_returns_its_messages(
    start: Callable[..., PoolWorker], soft_shutdown: str
) -> None:
    worker = start(3, POOL_SOFT_SHUTDOWN=soft_shutdown)
    for number in range(5):
        worker.send("linger", f"task{number}", "open")
    worker.wait_for("begin", 3)
    assert worker.end(signal.SIGQUIT) == 0
    assert len(worker.journal("cancelled")) == 3
    assert worker.left() == (5, 0)
    assert "NotImplementedError" not in worker.log.read_text()


@pytest.mark.parametrize("tasks", ["plain", "light"])
def test_sigquit_during_a_warm_shutdown_cancels_what_is_left(start: Callable[..., PoolWorker], tasks: str) -> None:
    worker = start(2, POOL_TASKS=tasks)
    for number in range(2):
        worker.send("linger", f"task{number}", "open")
    worker.wait_for("begin", 2)
    worker.process.send_signal(signal.SIGTERM)
    worker.wait(lambda: "Warm shutdown" in worker.log.read_text())
    assert worker.end(signal.SIGQUIT) == 0
    assert len(worker.journal("cancelled")) == 2
    assert worker.left() == (2, 0)


@pytest.mark.parametrize("tasks", ["plain", "light"])
def test_a_lost_connection_cancels_what_runs_and_each_task_ends_once(
    start: Callable[..., PoolWorker], tasks: str
) -> None:
    worker = start(4, POOL_TASKS=tasks)
    for number in range(4):
        worker.send("linger", f"task{number}", "open")
    worker.wait_for("begin", 4)
    for client in worker.broker.client_list():
        if client["name"] != "journal" and client["id"] != str(worker.broker.client_id()):
            worker.broker.client_kill_filter(_id=client["id"])
    worker.wait_for("cancelled", 4)
    worker.wait_for("begin", 8)
    worker.broker.set("open", 1)
    worker.wait(lambda: worker.left() == (0, 0))
    worker.send("nap", "next", 0)
    worker.wait_for("end", 5)
    names = Counter(name for name, *_ in worker.journal("end"))
    assert names == {"task0": 1, "task1": 1, "task2": 1, "task3": 1, "next": 1}
    assert worker.end(signal.SIGTERM) == 0


def test_a_blocked_loop_is_reported_with_its_stack_and_then_ends_the_process(start: Callable[..., PoolWorker]) -> None:
    worker = start(2, POOL_CLASS="tests.integration.pool_app:ImpatientPool")
    worker.send("block", 30)
    assert worker.process.wait(WITHIN) == os.EX_SOFTWARE
    log = worker.log.read_text()
    assert log.count("has been blocked") == 1
    assert "time.sleep(seconds)" in log
