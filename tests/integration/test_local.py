"""Embedded mode keeps its promises: private, restartable, one crawl per folder, and nothing outlives its parent."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import kombu
import psutil
import pytest
import redis

from models.errors import UnavailableError, UsageError
from models.settings import Settings, load_settings
from producer.hosting import guard, local, processes
from producer.hosting.local import EmbeddedRedis, WorkerProcesses
from producer.hosting.processes import GuardedProcess
from tests.servers import wait_until

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys, time
from pathlib import Path
from producer.hosting.local import EmbeddedRedis
with EmbeddedRedis(Path(sys.argv[1])) as server:
    print(server.redis_url, flush=True)
    time.sleep(600)
"""
SLEEPER = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(600)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPER}"


def is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def start_guarded(code: str, *, grace: float = 30) -> tuple[subprocess.Popen[str], psutil.Process]:
    """A python child under a guard: the guard, with our end of its pipe, and the child once it has said its pid."""
    command = guard.command_line([sys.executable, "-c", code], grace)
    guarded = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return guarded, psutil.Process(int(line_of(guarded.stdout)))


def line_of(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.readline().strip()


@pytest.fixture
def held_folder(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str], str]]:
    """A data folder in use by an embedded Redis of another process: the folder, that process, the Redis URL."""
    folder = tmp_path / "data"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as holder:
        try:
            yield folder, holder, line_of(holder.stdout)
        finally:
            holder.kill()


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_guard_passes_signals_on_and_the_exit_code_back(end: signal.Signals) -> None:
    guarded, child = start_guarded(SLEEPER)
    with guarded:
        guarded.send_signal(end)
        assert guarded.wait(20) in {128 + end, 1}  # Python turns INT into a traceback and exit code 1
    assert is_gone(child)


def test_guard_returns_the_exit_code_of_its_command() -> None:
    done = subprocess.Popen(guard.command_line(["sh", "-c", "exit 7"]), stdin=subprocess.PIPE)
    with done:
        assert done.wait(20) == 7


def test_guard_reports_a_command_that_cannot_be_started() -> None:
    command = guard.command_line(["/nowhere/to/be/found"])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as failed:
        assert line_of(failed.stderr) == "cannot start /nowhere/to/be/found: No such file or directory"
        assert failed.wait(20) == 127


@pytest.mark.parametrize(
    "arguments", [[], ["--"], ["--grace", "1"], ["--grace", "x", "--", "true"], ["--no", "1", "--", "true"]]
)
def test_guard_refuses_bad_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert guard.main(arguments) == 2
    assert capsys.readouterr().err.startswith("usage: ")


def test_guarded_child_ends_when_the_pipe_closes_even_if_it_ignores_term() -> None:
    guarded, child = start_guarded(STUBBORN, grace=0.2)
    with guarded:
        assert guarded.stdin is not None
        guarded.stdin.close()
        assert guarded.wait(20) == 128 + signal.SIGKILL
    assert is_gone(child)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_guarded_child_dies_with_a_guard_that_is_killed() -> None:
    guarded, child = start_guarded(STUBBORN)
    with guarded:
        guarded.kill()
    wait_until(lambda: is_gone(child), within=20, what="the child's end")


def test_what_a_guarded_command_started_is_killed_with_it(tmp_path: Path) -> None:
    process = GuardedProcess(["sh", "-c", "sleep 600 & echo $!; wait"], log_file=tmp_path / "sh.log")
    process.start()
    wait_until(lambda: processes.last_line(process.log_file).isdecimal(), within=20, what="the grandchild's pid")
    grandchild = psutil.Process(int(processes.last_line(process.log_file)))
    process.close()
    wait_until(lambda: is_gone(grandchild), within=20, what="the grandchild's end")


def test_python_child_and_redis_die_when_their_parent_is_killed(tmp_path: Path) -> None:
    code = f"""
import subprocess, sys, time
from producer.hosting import guard
from tests import servers
redis_server = [servers.redis_binary(), "--port", str(servers.free_port()), "--save", ""]
commands = [[sys.executable, "-c", {SLEEPER!r}], redis_server]
guards = [subprocess.Popen(guard.command_line(c), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) for c in commands]
print(*(g.pid for g in guards), flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        try:
            guards = [psutil.Process(int(pid)) for pid in line_of(parent.stdout).split()]
            wait_until(lambda: all(g.children() for g in guards), within=20, what="children")
            everyone = guards + [child for g in guards for child in g.children()]
            assert len(everyone) == 4
        finally:
            parent.kill()
    wait_until(lambda: all(is_gone(process) for process in everyone), within=20, what="everyone's end")


def test_embedded_redis_answers_redis_py_and_kombu_and_is_set_up_to_lose_nothing(tmp_path: Path) -> None:
    wanted = {"maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "everysec", "port": "0"}
    with EmbeddedRedis(tmp_path / "dåta %20 ?#") as server, redis.Redis.from_url(server.redis_url) as client:
        assert {name: client.config_get(name)[name] for name in wanted} == wanted
        assert int(client.config_get("maxmemory")["maxmemory"]) == 512 * 1024 * 1024
        # The worker names the transport itself, beside the URL.
        for transport in (None, "kombu.transport.redis:Transport"):
            with kombu.Connection(server.broker_url, transport=transport) as connection:  # type: ignore[attr-defined, no-untyped-call]
                connection.SimpleQueue("jobs").put("hello")
        assert client.llen("jobs") == 2
    assert stat.S_IMODE(server.folder.stat().st_mode) == 0o700


def test_embedded_redis_works_in_a_folder_whose_path_is_too_long_for_a_socket(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / ("long" * 40)) as server:
        with redis.Redis.from_url(server.redis_url) as client:
            assert client.ping()
        socket_folder = Path(client.connection_pool.connection_kwargs["path"]).parent
        assert stat.S_IMODE(socket_folder.stat().st_mode) == 0o700
    assert not socket_folder.exists()


def test_embedded_redis_keeps_its_data_for_the_next_crawl(tmp_path: Path) -> None:
    for expected in (None, b"1"):
        with EmbeddedRedis(tmp_path) as server, redis.Redis.from_url(server.redis_url) as client:
            assert client.get("runs") == expected
            client.incr("runs")


async def test_embedded_redis_that_is_killed_is_started_again_with_its_data(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server, redis.Redis.from_url(server.redis_url) as client:
        watch = asyncio.create_task(server.watch())
        client.config_set("appendfsync", "always")
        client.set("key", "value")
        pid = client.info("server")["process_id"]
        os.kill(pid, signal.SIGKILL)
        await until(lambda: answers(client) and client.info("server")["process_id"] != pid)
        assert client.get("key") == b"value"
        watch.cancel()


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except (redis.ConnectionError, redis.TimeoutError):
        return False


async def until(condition: Callable[[], bool], within: float = 30) -> None:
    """As `wait_until`, with the event loop running."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in other processes
            await asyncio.sleep(0.02)


def test_second_crawl_in_a_folder_is_refused_with_the_pid_of_the_first(
    held_folder: tuple[Path, subprocess.Popen[str], str],
) -> None:
    folder, holder, _ = held_folder
    with pytest.raises(UsageError, match=rf"^process {holder.pid} already uses the data folder .*data: .*$"):
        EmbeddedRedis(folder).__enter__()


def test_crawl_after_a_kill_waits_for_the_old_redis_and_takes_its_data_over(
    held_folder: tuple[Path, subprocess.Popen[str], str],
) -> None:
    folder, holder, url = held_folder
    with redis.Redis.from_url(url) as client:
        client.set("key", "value")
        old = psutil.Process(client.info("server")["process_id"])
    holder.kill()
    wait_until(lambda: is_gone(psutil.Process(holder.pid)), within=20, what="the first crawl's end")
    with EmbeddedRedis(folder) as server, redis.Redis.from_url(server.redis_url) as client:
        assert is_gone(old)
        assert client.get("key") == b"value"


def test_embedded_redis_that_cannot_start_says_why_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "REDIS_MAXMEMORY", "plenty")
    with pytest.raises(UnavailableError, match=r"^the embedded Redis does not start: .*redis\.log\)$"):
        EmbeddedRedis(tmp_path).__enter__()
    monkeypatch.undo()
    with EmbeddedRedis(tmp_path):  # and the folder is free again
        pass


def test_unwritable_data_folder_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match="SHOPCRAWL_DATA_DIR: cannot write to"):
        EmbeddedRedis(tmp_path / "file" / "data").__enter__()


def test_redis_from_path_is_used_only_when_it_is_new_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    binary = tmp_path / "redis-server"
    for version, used in (("6.2.0", True), ("10.0.1", True), ("6.0.16", False), ("5.0.7", False)):
        binary.write_text(f"#!/bin/sh\necho Redis server v={version} sha=0 bits=64\n")
        binary.chmod(0o755)
        assert (local.find_redis() == str(binary)) is used


def test_long_log_is_put_aside_when_its_process_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "LOG_BYTES", 10)
    process = GuardedProcess(["echo", "a line longer than that"], log_file=tmp_path / "worker.log")
    for _ in range(2):
        process.start()
        assert process.wait(20)
        process.close()
    assert (tmp_path / "worker.log").read_text() == (tmp_path / "worker.log.1").read_text() != ""
    assert stat.S_IMODE((tmp_path / "worker.log").stat().st_mode) == 0o600


@pytest.fixture
def fake_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings whose workers are small Python programs; each run adds its pid to `pids`."""
    program = (
        f"import os; open({str(tmp_path / 'pids')!r}, 'a').write(f'{{os.getpid()}}\\n'); import time; time.sleep(600)"
    )
    monkeypatch.setattr(local, "celery_command", lambda name, level: [sys.executable, "-c", program])
    return load_settings(data_dir=tmp_path, workers=2)


def started(settings: Settings) -> list[int]:
    pids = settings.data_dir / "pids"
    return [int(line) for line in pids.read_text().split()] if pids.exists() else []


async def test_worker_that_is_killed_is_replaced_and_all_end_with_stop(fake_workers: Settings) -> None:
    async with WorkerProcesses(fake_workers) as workers:
        watch = asyncio.create_task(workers.watch())
        await until(lambda: len(started(fake_workers)) == 2)
        os.kill(started(fake_workers)[0], signal.SIGKILL)
        await until(lambda: len(started(fake_workers)) == 3 and workers.running == 2)
        watch.cancel()
    assert workers.running == 0
    assert all(is_gone_pid(pid) for pid in started(fake_workers))


def is_gone_pid(pid: int) -> bool:
    return not processes.is_alive(pid)


async def test_worker_that_ends_by_itself_at_every_start_is_given_up_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "celery_command", lambda name, level: ["sh", "-c", "echo no such setting; exit 3"])
    monkeypatch.setattr(local, "FIRST_RESTART", 0.01)
    async with WorkerProcesses(load_settings(data_dir=tmp_path)) as workers:
        with pytest.raises(
            UnavailableError, match=r"^worker-1 does not start: no such setting \(log: .*worker-1\.log\)$"
        ):
            await asyncio.wait_for(workers.watch(), 60)


async def test_worker_that_ignores_term_is_killed_after_the_grace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "celery_command", lambda name, level: [sys.executable, "-c", STUBBORN])
    workers = WorkerProcesses(load_settings(data_dir=tmp_path))
    workers.start()
    log_file = tmp_path / "logs" / "worker-1.log"
    await until(lambda: processes.last_line(log_file).isdecimal())
    await workers.stop(grace=0.1)
    assert is_gone_pid(int(processes.last_line(log_file)))


def test_child_reads_exactly_its_parents_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = load_settings(
        data_dir=tmp_path, redis_url="unix:///r.sock?db=0", tmapi_tokens="one,two", archive=False, retry_base=0.25
    )
    (tmp_path / ".env").write_text("SHOPCRAWL_PROXY=http://stray:1\nSHOPCRAWL_FLOWER_USER=stray\n")
    monkeypatch.chdir(tmp_path)
    for name, value in local.environment(parent).items():
        monkeypatch.setenv(name, value)
    child = load_settings()
    assert child.database == parent.database
    assert child.model_dump(exclude={"database_url"}) == parent.model_dump(exclude={"database_url"})


def test_restart_pauses_grow_and_stay_bounded() -> None:
    pauses = [local.restart_pause(n) for n in range(1, 100)]
    assert pauses[0] == local.FIRST_RESTART
    assert pauses == sorted(pauses)
    assert pauses[-1] == local.LONGEST_RESTART
