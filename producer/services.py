"""The database and Redis that a command needs: opened, checked, and their errors told in one line with the cure."""

import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

from alembic.util import CommandError
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from models.broker import redis_url
from models.database import create_engine, is_postgresql, require_schema, unavailable, upgrade
from models.errors import UnavailableError, UsageError
from models.settings import Settings
from producer.hosting.local import EmbeddedRedis
from producer.hosting.processes import FolderBusyError


def make_folder(path: Path) -> None:
    """Create the data folder. Raises UsageError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"SHOPCRAWL_DATA_DIR: cannot use the folder {path}: {error.strerror}") from None


def open_engine(settings: Settings) -> AsyncEngine:
    """An engine for the database of the settings. Raises UnavailableError for a bad URL or an unusable SQLite file."""
    try:
        engine = create_engine(settings.database)
    except (SQLAlchemyError, ValueError):  # their texts repeat the URL or its parts
        raise UnavailableError("SHOPCRAWL_DATABASE_URL is not a database URL: check its host, port and name") from None
    if not is_postgresql(engine):
        _try_sqlite(engine.url.database or ":memory:")
    return engine


def _try_sqlite(file: str) -> None:
    """Try the file here: the thread that the asyncio driver opens it in would outlive the failure, and complain."""
    try:
        with contextlib.closing(sqlite3.connect(file)) as connection:
            connection.execute("PRAGMA schema_version").fetchone()
    except sqlite3.Error as error:
        raise UnavailableError(f"the database cannot be used: {file}: {error} (see SHOPCRAWL_DATABASE_URL)") from None


async def bring_up_to_date(engine: AsyncEngine) -> str:
    """Upgrade the schema and return its version. Raises UnavailableError, also for a schema newer than this program."""
    try:
        return await upgrade(engine)
    except CommandError:
        await require_schema(engine)
        raise


async def require_redis(settings: Settings) -> None:
    """Raise UnavailableError or UsageError with the cure unless the configured Redis answers."""
    async with Redis.from_url(redis_url(settings), socket_timeout=10, socket_connect_timeout=5) as redis:
        try:
            await redis.ping()
        except (RedisError, OSError) as error:
            raise redis_unavailable(error) from None


@contextlib.asynccontextmanager
async def fleets_redis(settings: Settings) -> AsyncIterator[Redis]:
    """The Redis that the fleet shares: in embedded mode that of the process that hosts this folder now, or our own."""
    with contextlib.ExitStack() as stack:
        if settings.redis_url is not None:
            await require_redis(settings)
            url = redis_url(settings)
        else:
            embedded = EmbeddedRedis(settings.data_dir)
            with contextlib.suppress(FolderBusyError):
                stack.enter_context(embedded)
            url = embedded.redis_url
        async with Redis.from_url(url, socket_timeout=10) as redis:
            yield redis


def redis_unavailable(error: BaseException) -> UnavailableError:
    """A one-line error for a Redis that cannot be used."""
    detail = str(error).strip().splitlines() or [type(error).__name__]
    return UnavailableError(f"Redis cannot be used: {detail[0][:200]} (see SHOPCRAWL_REDIS_URL)")


def explained(error: BaseException) -> BaseException:
    """What to tell instead of an error that escaped from a command; errors that speak for themselves stay."""
    while isinstance(error, BaseExceptionGroup):  # a task group's: the first is the cause
        error = error.exceptions[0]
    if isinstance(error, SQLAlchemyError):
        return unavailable(error)
    if isinstance(error, RedisError):
        return redis_unavailable(error)
    if not isinstance(error, OSError) or isinstance(error, BrokenPipeError):
        return error
    if error.filename is not None:
        return UnavailableError(f"{error.filename}: {error.strerror}")
    return unavailable(error)
