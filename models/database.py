"""Engines for PostgreSQL and SQLite, schema upgrades, and a clock that every process agrees on."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from models.errors import UnavailableError

SQLITE_BUSY_SECONDS = 30
_MIGRATIONS = Path(__file__).parent / "migrations" / "versions"


def create_engine(url: str, *, pool_size: int = 5) -> AsyncEngine:
    """An engine for a URL of `Settings.database`; SQLite runs in WAL mode and starts every write by taking the lock."""
    common: dict[str, Any] = {
        "hide_parameters": True,
        "json_serializer": lambda value: msgspec.json.encode(value).decode(),
        "json_deserializer": msgspec.json.decode,
    }
    if url.startswith("sqlite"):
        engine = create_async_engine(url, connect_args={"timeout": SQLITE_BUSY_SECONDS}, **common)
        sa.event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        sa.event.listen(engine.sync_engine, "begin", _begin_sqlite)
        return engine
    # JIT compiles for longer than our short statements run. A plan that is kept was made when the tables were empty.
    server = {"jit": "off", "plan_cache_mode": "force_custom_plan", "application_name": "shopcrawl", "timezone": "UTC"}
    arguments = {"server_settings": server, "timeout": 10}
    return create_async_engine(url, pool_size=pool_size, max_overflow=0, connect_args=arguments, **common)


def reader(engine: AsyncEngine) -> AsyncEngine:
    """The same engine for reading only: on SQLite it does not wait for the one writer, nor hold it up."""
    return engine.execution_options(read_only=True)


def _begin_sqlite(connection: sa.Connection) -> None:
    # A writer that first reads and then writes would find the database locked: it takes the lock at once.
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # we send BEGIN ourselves, see create_engine
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "temp_store=MEMORY"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def is_postgresql(connection: AsyncConnection | AsyncEngine) -> bool:
    """Whether the connection speaks to PostgreSQL (else SQLite)."""
    return connection.dialect.name == "postgresql"


async def upgrade(engine: AsyncEngine) -> str:
    """Bring the schema to the newest version and return that version. Raises UnavailableError."""
    # Alembic takes 9 MB, and a worker that only checks the version has no use for it.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", "models:migrations")

    def run(connection: sa.Connection) -> None:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")

    try:
        async with engine.begin() as connection:
            if is_postgresql(connection):  # two machines starting at once upgrade one after the other
                await connection.execute(sa.text("SELECT pg_advisory_xact_lock(7467)"))
            await connection.run_sync(run)
    except (SQLAlchemyError, OSError) as error:
        raise unavailable(error) from None
    return head_version()


def known_versions() -> list[str]:
    """The schema versions this code knows, oldest first: migrations are called `VERSION_what_it_does.py`."""
    return sorted(file.name.partition("_")[0] for file in _MIGRATIONS.glob("[0-9]*_*.py"))


def head_version() -> str:
    """The newest schema version this code knows."""
    return known_versions()[-1]


async def schema_state(engine: AsyncEngine) -> tuple[str | None, str]:
    """(version of the database or None if empty, version this code needs). Raises UnavailableError."""
    try:
        async with engine.connect() as connection:
            current = await connection.run_sync(_current_version)
    except (SQLAlchemyError, OSError) as error:
        raise unavailable(error) from None
    return current, head_version()


def _current_version(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    version: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return version


async def require_schema(engine: AsyncEngine) -> None:
    """Raise UnavailableError with the cure unless the database has exactly the schema this code needs."""
    current, head = await schema_state(engine)
    if current is None:
        raise UnavailableError("the database has no shopcrawl tables yet: run `shopcrawl db upgrade`")
    if current != head:
        outdated = current in known_versions()
        cure = "run `shopcrawl db upgrade`" if outdated else "it was made by a newer shopcrawl: upgrade this one"
        raise UnavailableError(f"the database has schema version {current}, this shopcrawl needs {head}: {cure}")


def unavailable(error: BaseException) -> UnavailableError:
    """A one-line error for a database that cannot be used, without its URL or password."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    detail = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
    return UnavailableError(f"the database cannot be used: {detail[:200]} (see SHOPCRAWL_DATABASE_URL)")


class Clock:
    """The database server's UTC time, carried on by the local monotonic clock: a worker's wrong clock does no harm."""

    def __init__(self) -> None:
        self._base = datetime.now(UTC)
        self._mark = time.monotonic()

    def now(self) -> datetime:
        """The time now, aware, in UTC; never on a whole second, whose shorter text would sort wrongly on SQLite."""
        now = self._base + timedelta(seconds=time.monotonic() - self._mark)
        return now if now.microsecond else now.replace(microsecond=1)

    async def synchronise(self, engine: AsyncEngine) -> None:
        """Read the database's clock. On SQLite, database and process share one clock already."""
        if not is_postgresql(engine):
            self._base, self._mark = datetime.now(UTC), time.monotonic()
            return
        async with engine.connect() as connection:
            started = time.monotonic()
            base = await connection.scalar(sa.text("SELECT clock_timestamp()"))
            self._base, self._mark = base.astimezone(UTC), (started + time.monotonic()) / 2

    async def keep(self, engine: AsyncEngine, every: float = 60) -> None:
        """Synchronise again and again until cancelled; a failed reading is skipped."""
        while True:
            await asyncio.sleep(every)
            try:
                await self.synchronise(engine)
            except (SQLAlchemyError, OSError):
                continue
