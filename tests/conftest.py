"""Fixtures that every test may use: real servers, fresh databases, and no network beyond this machine."""

import asyncio
import ipaddress
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from models.database import create_engine, upgrade
from models.settings import async_url
from tests.servers import PostgresServer, RedisServer

settings.register_profile("ci", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("ci")

# A runner in the background ignores Ctrl-C, and so would every process that the tests start and then interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """This test process's own Redis, with its append-only file on."""
    with RedisServer(tmp_path_factory.mktemp("redis"), aof=True) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """This test process's own PostgreSQL."""
    with PostgresServer(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_template(postgres_server: PostgresServer) -> str:
    """Name of a database at the newest schema, to be copied and never connected to."""
    asyncio.run(upgrade_database(postgres_server.create_database("shopcrawl_template")))
    return "shopcrawl_template"


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file at the newest schema, to be copied."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    asyncio.run(upgrade_database(f"sqlite:///{path}"))
    return path


@pytest.fixture
def redis_url(redis_server: RedisServer) -> Iterator[str]:
    """URL of a running, empty Redis."""
    redis_server.start()
    with redis_server.client() as client:
        client.flushall()
    yield redis_server.url
    redis_server.start()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer, postgres_template: str) -> Iterator[str]:
    """URL of this test's own PostgreSQL database, empty and at the newest schema."""
    postgres_server.start()
    url = postgres_server.create_database(template=postgres_template)
    yield url
    postgres_server.start()
    postgres_server.drop_database(url)


@pytest.fixture
def sqlite_url(tmp_path: Path, sqlite_template: Path) -> str:
    """URL of this test's own SQLite file, empty and at the newest schema."""
    path = tmp_path / "shopcrawl.db"
    path.write_bytes(sqlite_template.read_bytes())
    return f"sqlite:///{path}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """URL of this test's own empty database: the test runs once on SQLite and once on PostgreSQL."""
    fixture = {"sqlite": "sqlite_url", "postgresql": "postgres_url"}[request.param]
    return str(request.getfixturevalue(fixture))


async def upgrade_database(url: str) -> None:
    """Bring the database at `url` (any form the settings accept) to the newest schema."""
    engine = create_engine(async_url(url))
    try:
        await upgrade(engine)
    finally:
        await engine.dispose()


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that tries to connect or resolve a name beyond this machine."""
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, _guarded_connect(getattr(socket.socket, name)))
    monkeypatch.setattr(socket, "getaddrinfo", _guarded_resolve(socket.getaddrinfo))


def _guarded_connect(connect: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(self: socket.socket, address: Any) -> Any:
        if self.family in {socket.AF_INET, socket.AF_INET6} and not _is_loopback(address[0]):
            pytest.fail(f"a test tried to connect to {address[0]}")
        return connect(self, address)

    return guarded


def _guarded_resolve(resolve: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(host: Any, *args: Any, **options: Any) -> Any:
        if host is not None and not _is_loopback(host):
            pytest.fail(f"a test tried to resolve {host}")
        return resolve(host, *args, **options)

    return guarded


def _is_loopback(host: str | bytes) -> bool:
    name = host.decode() if isinstance(host, bytes) else host
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
