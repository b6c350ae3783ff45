"""`shopcrawl doctor`: ask each service a few cheap questions, then judge the answers, one line and one cure each."""

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import redis.asyncio
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from models.addresses import is_loopback
from models.database import create_engine, is_postgresql, schema_state, unavailable
from models.errors import ShopcrawlError, UnavailableError, UsageError
from models.redact import redact
from models.settings import Settings
from models.source import Source, source_named, source_names
from models.tables import session
from models.vault import KEY_FILE, WRONG_KEY, Vault
from producer.hosting.local import OLDEST_REDIS, find_redis

OLDEST_POSTGRESQL, OLDEST_SQLITE = (13,), (3, 35)
CLOCK_TOLERANCE = 60.0  # seconds
ANSWER_WITHIN = 15.0  # seconds for each service
SESSIONS_TRIED = 100  # the newest ones, to see whether the key fits
SCARCE_DISK, FULL_DISK = 2 * 1024**3, 200 * 1024**2  # bytes free


@dataclass(frozen=True)
class Check:
    """One finding: `ok` is True, False, or None for a warning; `cure` is empty where nothing is to be done."""

    name: str
    ok: bool | None
    detail: str
    cure: str = ""


@dataclass(frozen=True)
class StoredSessions:
    """The shops' sessions in a database: how many there are, how many were refused, and the newest ones, sealed."""

    total: int = 0
    refused: int = 0
    newest: Sequence[bytes] = ()


@dataclass(frozen=True)
class DatabaseAnswer:
    """What a database says about itself; `schema` is (its version or None, ours), `ahead` our clock minus its, in s."""

    kind: str
    version: tuple[int, ...]
    schema: tuple[str | None, str]
    sessions: StoredSessions = StoredSessions()
    ahead: float | None = None


@dataclass(frozen=True)
class Findings:
    """Checks made on one service, how far our clock is ahead of its, in seconds, and sessions if it stores some."""

    checks: list[Check] = field(default_factory=list)
    ahead: float | None = None
    sessions: StoredSessions = StoredSessions()


async def run_checks(settings: Settings) -> list[Check]:
    """Check everything a crawl needs. Raises nothing: whatever goes wrong is a check's result."""
    broken, sources = load_sources()
    configured = [source for source in sources if source.credentials(settings)]
    database, broker, apis = await asyncio.gather(
        check_database(settings),
        check_redis(settings),
        asyncio.gather(*(check_api(source, settings) for source in configured)),
    )
    clocks = {"the database": database.ahead}
    clocks |= {f"{source.name}'s API": api.ahead for source, api in zip(configured, apis, strict=True)}
    return [
        *database.checks,
        *broker,
        judge_clock({name: ahead for name, ahead in clocks.items() if ahead is not None}),
        *broken,
        *judge_sources(sources, settings),
        *(check for api in apis for check in api.checks),
        *check_sessions(database.sessions, settings, needed=any(source.needs_session for source in configured)),
        judge_user(os.geteuid(), settings.allow_root),
        check_data_dir(settings.data_dir),
    ]


async def check_database(settings: Settings) -> Findings:
    """Ask the database for its version, schema and clock."""
    try:
        if settings.database_url is None and not (settings.data_dir / "shopcrawl.db").exists():
            where = settings.data_dir / "shopcrawl.db"
            return Findings([Check("database", True, f"SQLite, to be created at {where} by the first crawl")])
        async with asyncio.timeout(ANSWER_WITHIN):
            answer = await _ask_database(settings.database)
    except TimeoutError:
        error = f"no answer within {ANSWER_WITHIN:g} s"
    except ShopcrawlError as reason:
        error = str(reason)
    else:
        embedded = settings.database_url is None
        checks = [judge_database(answer), judge_schema(*answer.schema, embedded=embedded)]
        return Findings(checks, answer.ahead, answer.sessions)
    cure = "start the database, or correct SHOPCRAWL_DATABASE_URL"
    return Findings([Check("database", False, _one_line(error, settings), cure)])


async def _ask_database(url: str) -> DatabaseAnswer:
    try:
        engine = create_engine(url)
    except (SQLAlchemyError, ValueError) as error:
        raise unavailable(error) from None
    try:
        return await _ask_engine(engine)
    except (SQLAlchemyError, OSError) as error:
        raise unavailable(error) from None
    finally:
        await engine.dispose()


async def _ask_engine(engine: AsyncEngine) -> DatabaseAnswer:
    schema = await schema_state(engine)
    async with engine.connect() as connection:
        sessions = await _ask_for_sessions(connection) if schema[0] == schema[1] else StoredSessions()
        if not is_postgresql(connection):
            text = str(await connection.scalar(sa.text("SELECT sqlite_version()")))
            return DatabaseAnswer("SQLite", tuple(int(part) for part in text.split(".")), schema, sessions)
        number = int(await connection.scalar(sa.text("SELECT current_setting('server_version_num')")) or 0)
        started = time.time()
        theirs = await connection.scalar(sa.text("SELECT extract(epoch FROM clock_timestamp())::float8"))
        ahead = (started + time.time()) / 2 - float(theirs or 0)
        return DatabaseAnswer("PostgreSQL", (number // 10_000, number % 10_000), schema, sessions, ahead)


async def _ask_for_sessions(connection: AsyncConnection) -> StoredSessions:
    counts = await connection.execute(sa.select(sa.func.count(), sa.func.count(session.c.refused_at)))
    total, refused = counts.one()
    newest = sa.select(session.c.sealed).order_by(session.c.set_at.desc()).limit(SESSIONS_TRIED)
    return StoredSessions(total, refused, list(await connection.scalars(newest)))


def judge_database(answer: DatabaseAnswer) -> Check:
    """Whether the database is new enough."""
    oldest = OLDEST_POSTGRESQL if answer.kind == "PostgreSQL" else OLDEST_SQLITE
    detail = f"{answer.kind} {_dotted(answer.version)}"
    if answer.version >= oldest:
        return Check("database", True, detail)
    return Check("database", False, detail, f"upgrade to {answer.kind} {_dotted(oldest)} or newer")


def judge_schema(current: str | None, head: str, *, embedded: bool) -> Check:
    """Whether the database has the tables that this program needs; an embedded crawl upgrades them by itself."""
    if current == head:
        return Check("schema", True, f"version {current}")
    detail = f"version {current or 'none yet'}, this shopcrawl needs {head}"
    if embedded:
        return Check("schema", True, f"{detail}: the next crawl upgrades it")
    return Check("schema", False, detail, "run `shopcrawl db upgrade`")


async def check_redis(settings: Settings) -> list[Check]:
    """Ask Redis for its version and for whether it forgets anything."""
    if settings.redis_url is None:
        try:
            return [Check("redis", True, f"embedded, started by each crawl from {find_redis()}")]
        except UnavailableError as error:
            return [Check("redis", False, str(error), "install Redis 6.2 or newer, or set SHOPCRAWL_REDIS_URL")]
    try:
        async with asyncio.timeout(ANSWER_WITHIN):
            client = redis.asyncio.Redis.from_url(settings.redis_url.get_secret_value())
            async with client:
                return judge_redis(await client.info())
    except TimeoutError:
        error_text = f"no answer within {ANSWER_WITHIN:g} s"
    except (redis.RedisError, OSError, ValueError) as error:
        error_text = str(error)
    cure = "start Redis, or correct SHOPCRAWL_REDIS_URL"
    return [Check("redis", False, _one_line(error_text, settings), cure)]


def judge_redis(info: dict[str, object]) -> list[Check]:
    """Judge the answer to INFO: version, eviction and persistence."""
    text = str(info.get("redis_version", "0"))
    version = tuple(int(part) for part in text.split(".")[:2] if part.isdecimal())
    new_enough = version >= OLDEST_REDIS
    policy = str(info.get("maxmemory_policy", "unknown"))
    keeps_keys = policy == "noeviction"
    persists = str(info.get("aof_enabled", "0")) == "1"
    return [
        Check("redis", new_enough, f"version {text}", "" if new_enough else "upgrade to Redis 6.2 or newer"),
        Check(
            "redis eviction",
            keeps_keys,
            f"maxmemory-policy {policy}",
            "" if keeps_keys else "set `maxmemory-policy noeviction`: this one throws queued pages away",
        ),
        Check(
            "redis persistence",
            persists or None,
            f"appendonly {'yes' if persists else 'no'}",
            "" if persists else "set `appendonly yes`, else a restart sends pages in flight a second time",
        ),
    ]


def judge_clock(ahead: dict[str, float]) -> Check:
    """Judge how many seconds this machine's clock is ahead of others'."""
    if not ahead:
        return Check("clock", None, "no other clock to compare with")
    name, worst = max(ahead.items(), key=lambda item: abs(item[1]))
    detail = f"{abs(worst):.0f} s {'ahead of' if worst >= 0 else 'behind'} {name}"
    if abs(worst) <= CLOCK_TOLERANCE:
        return Check("clock", True, f"this machine is at most {detail}")
    return Check("clock", False, f"this machine is {detail}", f"set the clock (NTP) of this machine or of {name}")


def load_sources() -> tuple[list[Check], list[Source]]:
    """Every registered source, and a check for each that cannot be loaded: it may be somebody else's package."""
    broken, sources = [], []
    for name in source_names():
        try:
            sources.append(source_named(name))
        except Exception as error:
            detail = f"cannot be loaded: {type(error).__name__}"
            broken.append(
                Check(f"source {name}", False, detail, "install the package that brings it again, or remove it")
            )
    return broken, sources


def judge_sources(sources: Sequence[Source], settings: Settings) -> list[Check]:
    """Which sources have credentials, told by their fingerprints, never by their text; one is enough."""
    checks = [_judge_credentials(source, settings) for source in sources]
    found = [check for check in checks if check is not None]
    if found:
        return found
    cure = ", or ".join(source.credential_help() for source in sources)
    return [Check("credential", False, "no source has one", cure or "install shopcrawl again: it has no source")]


def _judge_credentials(source: Source, settings: Settings) -> Check | None:
    names = [credential.name for credential in source.credentials(settings)]
    what = f"{source.name} credential"
    if names:
        detail = f"{len(names)}, by fingerprint: {', '.join(names)}"
        if source.name == "tmapi" and len(names) < len(settings.tmapi_tokens):
            return Check(what, None, detail, "remove the token that is given twice: it doubles no limit")
        return Check(what, True, detail)
    if source.name == "top" and (settings.top_app_key or settings.top_app_secret):
        missing = "secret" if settings.top_app_key else "key"
        return Check(what, False, f"the app's {missing} is missing", source.credential_help())
    return None


async def check_api(source: Source, settings: Settings) -> Findings:
    """Call a source's address once without a parameter, which costs nothing; any HTTP answer counts."""
    name = f"{source.name} answer"
    try:
        url = source.base_url(settings)
        address = judge_address(source.name, url)
    except (UsageError, ValueError) as error:
        return Findings([Check(f"{source.name} address", False, "not usable", _one_line(str(error), settings))])
    started = time.time()
    try:
        status, date = await _ask_api(url, settings)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        detail = _one_line(str(error) or f"no answer within {ANSWER_WITHIN:g} s", settings)
        cure = f"check the network, SHOPCRAWL_PROXY and the address of {source.name}"
        return Findings([address, Check(name, False, detail, cure)])
    ahead = None if date is None else (started + time.time()) / 2 - date
    return Findings([address, Check(name, True, f"HTTP {status}")], ahead)


async def _ask_api(url: str, settings: Settings) -> tuple[int, float | None]:
    """(HTTP status, the server's time in seconds since 1970 if it tells)."""
    timeout = aiohttp.ClientTimeout(total=ANSWER_WITHIN)
    proxy = settings.proxy.get_secret_value() if settings.proxy is not None else None
    headers = {"User-Agent": settings.user_agent}
    async with (
        aiohttp.ClientSession(timeout=timeout, trust_env=False, headers=headers) as http,
        http.get(url, proxy=proxy, allow_redirects=False) as response,
    ):
        return response.status, http_date(response.headers.get("Date"))


def http_date(header: str | None) -> float | None:
    """Seconds since 1970 of a Date header, to the middle of its second; None if it is missing or unreadable."""
    try:
        moment = parsedate_to_datetime(header or "")
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() + 0.5


def judge_address(name: str, url: str) -> Check:
    """Whether calls to a source's address are encrypted, or stay on this machine."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port
    shown = f"{parts.scheme}://{host}{f':{port}' if port else ''}"
    if parts.scheme == "http" and not is_loopback(host):
        detail = f"{shown} is not encrypted: secrets can be read on their way"
        return Check(f"{name} address", None, detail, "set an https:// address if the server has one")
    return Check(f"{name} address", True, shown)


def check_sessions(stored: StoredSessions, settings: Settings, *, needed: bool) -> list[Check]:
    """The shops' sessions and the key that seals them; nothing if no source needs any and none is stored."""
    if not needed and not stored.total:
        return []
    try:
        opened = Vault(settings).open(stored.newest)
    except UsageError as error:
        key = Check("secret key", False, str(error), "sessions can be neither stored nor used until this is mended")
    else:
        key = judge_key(settings, unreadable=opened.count(None))
    return [key, judge_sessions(stored)]


def judge_key(settings: Settings, *, unreadable: int) -> Check:
    """Where the key comes from, and whether it opens the newest sessions."""
    file = settings.data_dir.absolute() / KEY_FILE
    where = "SHOPCRAWL_SECRET_KEY" if settings.secret_key else f"{file}, mode 600"
    if unreadable:
        cure = "bring that key back (docs/runbook.md), or set these sessions anew"
        return Check("secret key", False, f"{unreadable} of the newest sessions are {WRONG_KEY}", cure)
    if not settings.secret_key and not file.exists():
        where = f"{file}, to be made with the first session"
    if not settings.secret_key and settings.redis_url is not None:
        cure = "set SHOPCRAWL_SECRET_KEY everywhere if workers or commands run on other machines"
        return Check("secret key", None, where, cure)
    return Check("secret key", True, where)


def judge_sessions(stored: StoredSessions) -> Check:
    """Whether shops have sessions, and whether some were refused."""
    if not stored.total:
        return Check("sessions", None, "none stored", "`shopcrawl session set SHOP` stores one")
    detail = f"{stored.total} stored, {stored.refused} refused"
    if not stored.refused:
        return Check("sessions", True, detail)
    return Check("sessions", None, detail, "`shopcrawl session list` names them, `shopcrawl session set` renews one")


def judge_user(uid: int, allow_root: bool) -> Check:
    """Warn about running as root."""
    if uid != 0:
        return Check("user", True, "not root")
    if allow_root:
        return Check("user", None, "root, allowed by SHOPCRAWL_ALLOW_ROOT", "run as an ordinary user where you can")
    return Check(
        "user", None, "root: services refuse to start", "run as an ordinary user, or set SHOPCRAWL_ALLOW_ROOT=true"
    )


def check_data_dir(data_dir: Path) -> Check:
    """Whether the data folder, or the place where it will be made, takes files and has room."""
    existing = next(folder for folder in (data_dir.absolute(), *data_dir.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            free = shutil.disk_usage(existing).free
    except OSError as error:
        detail = f"cannot write to {existing}: {error.strerror}"
        return Check("data folder", False, detail, "make it writable, or set SHOPCRAWL_DATA_DIR")
    return judge_disk(existing, free)


def judge_disk(folder: Path, free: int) -> Check:
    """Judge the bytes free where the data folder lies."""
    detail = f"{folder}, {free / 1024**3:.1f} GiB free"
    if free >= SCARCE_DISK:
        return Check("data folder", True, detail)
    return Check(
        "data folder", False if free < FULL_DISK else None, detail, "free some disk, or set SHOPCRAWL_DATA_DIR"
    )


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)


def _one_line(text: str, settings: Settings) -> str:
    lines = redact(text, settings.secrets).strip().splitlines()
    return lines[0][:200] if lines else "no reason given"
