"""Run a command that ends when whoever started it does: its standard input is a pipe whose end is that parent's end."""

# Nothing but the standard library's quick modules is imported, so that `python -I -S guard.py` starts in milliseconds.
import contextlib
import os
import select
import signal
import sys
import time

GRACE = 5.0  # seconds between TERM and KILL once the parent is gone
PR_SET_PDEATHSIG = 1
FORWARDED = (signal.SIGTERM, signal.SIGINT)
USAGE = "usage: python guard.py [--grace SECONDS] -- COMMAND..."


def command_line(command: list[str], grace: float = GRACE) -> list[str]:
    """The command line that runs `command` under a guard; start it with a pipe as standard input and keep that open."""
    return [sys.executable, "-I", "-S", __file__, "--grace", str(grace), "--", *command]


def main(arguments: list[str]) -> int:
    """Guard the command in `arguments` and return its exit code, 128 plus the signal's number if one ended it.

    TERM and INT are passed on, QUIT kills the command and its process group at once.
    """
    try:
        grace, command = _parse(arguments)
    except ValueError:
        sys.stderr.write(USAGE + "\n")
        return 2
    _own_session()
    wakeup = _catch_signals()
    child = _start(command)
    return _watch(child, wakeup, grace)


def _parse(arguments: list[str]) -> tuple[float, list[str]]:
    split = arguments.index("--")
    options, command = arguments[:split], arguments[split + 1 :]
    if not command or (options and (len(options) != 2 or options[0] != "--grace")):
        raise ValueError(USAGE)
    return (float(options[1]) if options else GRACE), command


def _own_session() -> None:
    """Leave the terminal's process group: Ctrl-C goes to the parent alone, which then stops us in its order."""
    try:
        os.setsid()
    except PermissionError:  # already the leader of a session
        return


def _catch_signals() -> int:
    """Turn signals into bytes in a pipe, so that one `select` waits for them and for the parent's end alike."""
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    for number in (*FORWARDED, signal.SIGQUIT, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    return read_end


def _start(command: list[str]) -> int:
    guard = os.getpid()
    child = os.fork()
    if child:
        with contextlib.suppress(OSError):  # set on both sides of the fork, so that neither runs ahead of it
            os.setpgid(child, child)
        return child
    try:
        _prepare_child(guard)
        os.execvp(command[0], command)  # noqa: S606 - the command line is our own, no shell is wanted
    except OSError as error:
        sys.stderr.write(f"cannot start {command[0]}: {error.strerror}\n")
    finally:
        os._exit(127)


def _prepare_child(guard: int) -> None:
    os.setpgid(0, 0)  # its own group, so that one signal reaches whatever it starts, and not the guard
    signal.set_wakeup_fd(-1)
    for number in (*FORWARDED, signal.SIGQUIT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - slow to import, and only the child on Linux needs it

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != guard:  # the guard was killed before the kernel knew
            os._exit(128 + signal.SIGKILL)


def _watch(child: int, wakeup: int, grace: float) -> int:
    deadline: float | None = None
    while True:
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            _signal_group(child, signal.SIGKILL)  # whatever it left behind
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        if deadline is not None and time.monotonic() >= deadline:
            _signal_group(child, signal.SIGKILL)
        watched = [wakeup] if deadline is not None else [wakeup, 0]
        pause = None if deadline is None else max(0.05, deadline - time.monotonic())
        ready = select.select(watched, [], [], pause)[0]
        if wakeup in ready:
            _pass_on(child, os.read(wakeup, 512))
        if 0 in ready and not os.read(0, 512):
            deadline = time.monotonic() + grace
            _signal(child, signal.SIGTERM)


def _pass_on(child: int, numbers: bytes) -> None:
    for number in numbers:
        if number in FORWARDED:
            _signal(child, number)
        elif number == signal.SIGQUIT:
            _signal_group(child, signal.SIGKILL)


def _signal(child: int, number: int) -> None:
    os.kill(child, number)  # it is not yet waited for, so the id is still its own


def _signal_group(child: int, number: int) -> None:
    try:
        os.killpg(child, number)
    except (ProcessLookupError, PermissionError):  # nobody is left in it
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
