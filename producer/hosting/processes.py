"""Child processes that end with us, and the lock that keeps two of us out of one data folder."""

import contextlib
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from models.errors import UsageError
from producer.hosting import guard

LOG_BYTES = 10 * 1024 * 1024  # a longer log is put aside when its process starts


class FolderBusyError(UsageError):
    """Another process hosts the embedded servers of this data folder: let it, or stop it."""


class FolderLock:
    """One embedded crawl per data folder; the kernel frees the lock once the crawl and its Redis are gone."""

    def __init__(self, data_dir: Path) -> None:
        self.path = data_dir / "lock"
        self._descriptor: int | None = None

    def __enter__(self) -> int:
        """Take the lock and return its descriptor. Raises FolderBusyError naming the process that holds it."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise UsageError(f"SHOPCRAWL_DATA_DIR: cannot write to {self.path.parent}: {error.strerror}") from None
        try:
            self._wait_for_lock(self._descriptor)
        except BaseException:
            self.__exit__()
            raise
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)
        return self._descriptor

    def is_free(self) -> bool:
        """Whether nobody holds the lock now."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            return _try_lock(descriptor)
        finally:
            os.close(descriptor)

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _wait_for_lock(self, descriptor: int) -> None:
        """Wait for the children of a crawl that was killed a moment ago, and for nobody else."""
        deadline = time.monotonic() + 2 * guard.GRACE
        while not _try_lock(descriptor):
            owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            if not owner.isdecimal() or is_alive(int(owner)) or time.monotonic() > deadline:
                raise FolderBusyError(
                    f"process {owner} already uses the data folder {self.path.parent}: wait for it or stop it"
                )
            time.sleep(0.05)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_alive(pid: int) -> bool:
    """Whether a process of this machine still runs; a dead one that nobody has waited for does not."""
    with contextlib.suppress(OSError):  # a system without /proc
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in {"Z", "X"}:
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


class GuardedProcess:
    """A command under a guard, its output in a log file."""

    def __init__(
        self, command: Sequence[str], *, log_file: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        self.command = list(command)
        self.log_file = log_file
        self._env = dict(env) if env is not None else None
        self._cwd = cwd
        self._guard: subprocess.Popen[bytes] | None = None

    def start(self, *, descriptors: Sequence[int] = ()) -> None:
        """Start the command; it inherits `descriptors`."""
        self.close()
        rotate(self.log_file)
        output = os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._guard = subprocess.Popen(  # noqa: S603 - no shell, and the command is ours
                guard.command_line(self.command),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=self._env,
                cwd=self._cwd,
                pass_fds=tuple(descriptors),
                start_new_session=True,
            )
        finally:
            os.close(output)

    @property
    def exit_code(self) -> int | None:
        """The exit code, 128 plus the signal's number if a signal ended it; None while it runs."""
        if self._guard is None:
            return None
        code = self._guard.poll()
        return code if code is None or code >= 0 else 128 - code

    @property
    def is_running(self) -> bool:
        return self._guard is not None and self._guard.poll() is None

    def terminate(self) -> None:
        """Ask the command to end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the command and whatever it started, now."""
        self._signal(signal.SIGQUIT)

    def wait(self, within: float) -> bool:
        """Whether it ended within so many seconds."""
        if self._guard is None:
            return True
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._guard.wait(within)
        return not self.is_running

    def close(self) -> None:
        """Kill what still runs and give the pipe back."""
        if self._guard is None:
            return
        self.kill()
        self._guard.wait()
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        self._guard = None

    def _signal(self, number: signal.Signals) -> None:
        if self._guard is not None:
            self._guard.send_signal(number)


def rotate(log_file: Path) -> None:
    """Put a log that has grown too long aside, in place of the one put aside before."""
    log_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if log_file.exists() and log_file.stat().st_size > LOG_BYTES:
        log_file.replace(log_file.with_name(f"{log_file.name}.1"))


def last_line(log_file: Path) -> str:
    """The last line of a log, at most 200 characters, or an empty text."""
    if not log_file.exists():
        return ""
    with log_file.open("rb") as file:
        file.seek(max(0, log_file.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")
