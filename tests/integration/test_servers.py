"""The test servers keep their promises: real, restartable, and gone with the process that started them."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import asyncpg
import psutil
import pytest

from tests import servers
from tests.servers import PostgresServer, RedisServer, wait_until

OWNER = """
import sys, time
from pathlib import Path
from tests import servers
server = getattr(servers, sys.argv[1])(Path(sys.argv[2]))
server.start()
print(server.pid, flush=True)
time.sleep(600)
"""


def test_redis_keeps_its_data_over_kill_9_when_its_append_only_file_is_on(tmp_path: Path) -> None:
    with RedisServer(tmp_path, password="s3cret", aof=True) as server:
        with server.client() as client:
            client.set("key", "value")
        before = server.pid
        server.restart(immediate=True)
        with server.client() as client:
            assert client.get("key") == "value"
        assert server.pid != before


def test_redis_comes_back_empty_without_its_append_only_file(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        with server.client() as client:
            client.set("key", "value")
        server.restart(immediate=True)
        with server.client() as client:
            assert client.get("key") is None


@pytest.mark.parametrize("cut", [lambda s: s.restart(), lambda s: (s.stop(kill=True), s.start())])
async def test_postgres_keeps_committed_rows_over_a_crash(
    postgres_server: PostgresServer, cut: Callable[[PostgresServer], object]
) -> None:
    url = postgres_server.create_database()
    connection = await asyncpg.connect(url)
    await connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
    cut(postgres_server)
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await connection.fetchval("SELECT 1")
    connection.terminate()
    again = await asyncpg.connect(url)
    assert await again.fetchval("SELECT one FROM kept") == 1
    await again.close()
    postgres_server.drop_database(url)


def test_each_test_database_is_a_copy_of_its_template(postgres_server: PostgresServer) -> None:
    template = postgres_server.create_database()
    name = template.rpartition("/")[2]
    postgres_server.execute("CREATE TABLE marker AS SELECT 7 AS n", database=name)
    copy = postgres_server.create_database(template=name)
    assert postgres_server.execute("SELECT n FROM marker", database=copy.rpartition("/")[2]) == "7"
    for url in (copy, template):
        postgres_server.drop_database(url)


@pytest.mark.parametrize("kind", ["RedisServer", "PostgresServer"])
def test_a_server_dies_when_its_owner_is_killed(kind: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", OWNER, kind, str(tmp_path)]
    root = Path(servers.__file__).parents[1]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as owner:
        assert owner.stdout is not None
        server = psutil.Process(int(owner.stdout.readline()))
        owner.kill()
    wait_until(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE, within=20, what="death")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to hand the server to another user")
def test_postgres_runs_from_a_copy_when_its_user_cannot_reach_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "_is_reachable", lambda path: path.name != "postgres")
    servers.postgres_binaries.cache_clear()
    try:
        with PostgresServer(tmp_path) as server:
            assert Path(psutil.Process(server.pid).exe()).is_relative_to(servers.postgres_binaries())
            assert psutil.Process(server.pid).uids().effective == servers.NOBODY
            assert server.execute("SELECT 1") == "1"
    finally:
        servers.postgres_binaries.cache_clear()


def test_a_test_cannot_reach_beyond_this_machine() -> None:
    with socket.socket() as outside, pytest.raises(pytest.fail.Exception, match=r"192\.0\.2\.1"):
        outside.connect(("192.0.2.1", 80))
    with pytest.raises(pytest.fail.Exception, match=r"example\.com"):
        socket.getaddrinfo("example.com", 443)


def test_signals_name_the_pid_of_the_server_itself(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        os.kill(server.pid, signal.SIGTERM)
        wait_until(lambda: not server.is_running, within=20, what="the end of Redis")
