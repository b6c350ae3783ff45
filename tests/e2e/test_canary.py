"""Unusual tokens and passwords, a fleet that meets every kind of trouble, and nowhere a trace of any of them."""

import base64
import json
import socket
import struct
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, quote_plus, urlsplit

import psutil
import pytest
import redis
import sqlalchemy as sa
from redis.backoff import NoBackoff
from redis.retry import Retry

from models.changes import Change
from models.compression import zstd
from models.tables import crawl, metadata, subscription
from tests.changes import keep
from tests.e2e.fleet import Fleet, until
from tests.e2e.flower import ASKED
from tests.ledger import engine_for
from tests.servers import RedisServer, free_port, wait_until

pytestmark = pytest.mark.e2e

# Each has a core without special characters, which shows through every spelling of the rest.
TOKEN, SPENT = "cnry-token-7f3e+/ä =", "cnry-spent-91bc&?%"
REDIS, DATABASE, PROXY, FLOWER = "cnry-redis-44aa", "cnry-dbase-55bb", "cnry-proxy-66cc", "cnry-flower-77dd"
SECRET, SESSION, DROPPED = "cnry-appse-88aa+/ =", "cnry-session-22ee+/ä%=", "cnry-dropped-33ff&?%"
WEBHOOK = "cnry-webhook-99dd+/ =%"
KEY = base64.urlsafe_b64encode(b"cnry-sealing-key-of-32-bytes-4c!").decode()
TOP_CORES = ("cnry-appse-88aa", "cnry-session-22ee", "cnry-dropped-33ff", KEY.rstrip("="))
CORES = ("cnry-token-7f3e", "cnry-spent-91bc", "cnry-webhook-99dd", REDIS, DATABASE, PROXY, FLOWER, *TOP_CORES)
SHOPS = ("sound", "echo", "fails", "refused", "redirected", "reset", "closed", "garbage", "html", "huge")
TROUBLES = ("200", "redirect", "422", "439", "500", "malformed", "oversize", "reset")
ROWS = 45  # of a shop
COMMANDS = (
    "changes",
    "changes --format csv",
    "webhook list",
    "webhook list --json",
    "session list",
    "session list --json",
    "export items",
    "export items --format csv",
    "export verdicts",
    "show sound",
    "status",
    "status 1",
    "status --json",
    "crawls",
    "doctor",
)


class Hostile(ThreadingHTTPServer):
    """An API behind a proxy that gives back what it was sent wherever it can, and breaks in every way."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Echo)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.proxy_logins: set[str] = set()
        self.tokens: set[str] = set()
        self.sessions: set[str] = set()
        self.signs: set[str] = set()
        self.deliveries = 0

    def handle_error(self, request: object, client_address: object) -> None:
        """Whoever breaks connections on purpose need not tell of it."""


class _Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        assert isinstance(self.server, Hostile)
        query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        token, name, number = query.get("apiToken", ""), query.get("member_id", ""), int(query.get("page", "1"))
        login = base64.b64decode(self.headers.get("Proxy-Authorization", "Basic ").split()[-1]).decode()
        self.server.proxy_logins.add(login)
        self.server.tokens.add(token)
        said = f"apiToken={token} {quote_plus(token)} {quote(token, safe='')} at {self.path} for {login}"
        if not token:
            self._json(401, {"message": said})
        elif token == SPENT:
            self._json(200, {"code": 439, "msg": f"no balance: {said}"})
        elif name in {"sound", "echo"}:
            self._json(200, _page(number, said if name == "echo" else "tea"))
        elif name == "refused":
            self._json(200, {"code": "422", "msg": f"bad parameters: {said}"})
        elif name == "redirected":
            self._raw(f"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/?{said}\r\nContent-Length: 0\r\n\r\n")
        elif name == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
        elif name == "garbage":
            self._raw(f"HTTP/9 {said}\r\n{said}\r\n\r\n")
        elif name == "html":
            self._raw(f"HTTP/1.1 200 {said}\r\nX-Said: {said}\r\nContent-Length: {len(said)}\r\n\r\n{said}")
        elif name == "huge":
            self._json(200, {"code": 200, "msg": said * 2_000})
        elif name == "fails":
            self._json(500, {"code": 500, "msg": f"broken: {said}"})
        else:
            self.close_connection = True

    def do_POST(self) -> None:
        """The platform's gateway: it serves one session and refuses the other."""
        assert isinstance(self.server, Hostile)
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.path == "/webhook":
            self.server.deliveries += 1
            said = f"{WEBHOOK} {quote_plus(WEBHOOK)} {quote(WEBHOOK, safe='')} {WEBHOOK * 500}"
            self._json(500, {"message": said})
            return
        sent = {name: values[0] for name, values in parse_qs(body).items()}
        session = sent["session"]
        self.server.sessions.add(session)
        self.server.signs.add(sent["sign"])
        said = f"session={session} {quote_plus(session)} {quote(session, safe='')} {SECRET} of {body}"
        if session == DROPPED:
            error = {"code": 27, "msg": f"Invalid session: {said}", "sub_code": "session-expired", "sub_msg": said}
            self._json(200, {"error_response": error})
            return
        said = said.replace(
            sent["sign"], ""
        )  # nobody can tell one from data, and it is worth nothing ten minutes later
        rows = [] if "start_modified" in sent else [{"num_iid": row, "title": f"{said} {row}"} for row in (1, 2, 3)]
        self._json(200, {"total_results": len(rows), "items": rows, "request_id": said})

    def _json(self, status: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer)
        head = f"HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._raw(head + body, close=False)

    def _raw(self, text: str, *, close: bool = True) -> None:
        self.wfile.write(text.encode("latin-1", "replace"))
        self.close_connection = close

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def _page(number: int, said: str) -> dict[str, Any]:
    """One of three pages; its items, the fields that nobody knows, and the oddities all say it."""
    rows = range((number - 1) * 20, min(number * 20, ROWS))
    items = [{"item_id": str(row), "title": f"{said} {row}", "unit": said, "surprise": {said: [said]}} for row in rows]
    return {
        "code": 200,
        "msg": said,
        "data": {"total_count": str(ROWS), "page": number, "page_size": 20, "items": items},
    }


@pytest.fixture
def hostile() -> Iterator[Hostile]:
    server = Hostile()
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def private_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis with a password, whose append-only file is read afterwards."""
    folder = tmp_path / "redis"
    folder.mkdir()
    with RedisServer(folder, password=REDIS, aof=True) as server:
        yield server


async def test_no_secret_is_found_anywhere(
    tmp_path: Path, hostile: Hostile, private_redis: RedisServer, postgres_url: str
) -> None:
    address, flower, metrics = f"127.0.0.1:{hostile.server_port}", free_port(), free_port()
    settings: dict[str, Any] = {
        "tmapi_base_url": f"http://{address}",
        "tmapi_tokens": f"{TOKEN},{SPENT}",
        "proxy": f"http://{PROXY}-user:{PROXY}@{address}",
        "redis_url": private_redis.url,
        "database_url": postgres_url.replace("postgres@", f"postgres:{DATABASE}@"),
        "flower_user": "operator",
        "flower_password": FLOWER,
        "flower_port": flower,
        "metrics_port": metrics,
        "top_gateway_url": f"http://{address}/router/rest",
        "top_app_key": "12345678",
        "top_app_secret": SECRET,
        "secret_key": KEY,
        "log_level": "DEBUG",
        "max_tries": 2,
        "max_body_bytes": 200_000,
    }
    with Fleet(tmp_path / "fleet", hostile, **settings) as fleet:  # type: ignore[arg-type]
        fleet.worker("worker")
        fleet.producer()
        fleet.background("flower", "flower")
        wait_until(lambda: "worker@" in fetch(flower, "/api/workers"), what="Flower with its worker")
        wait_until(lambda: ASKED in fleet.log("worker"), what="task events")
        (fleet.folder / "shops.csv").write_text("\n".join(["shop", *SHOPS]))
        asked = fleet.run("--debug", "crawl", str(fleet.folder / "shops.csv"), "--no-follow", "--json")
        assert asked.returncode == 0, asked.stderr
        wait_until(lambda: "crawl_page" in fetch(flower, "/api/tasks"), what="tasks in Flower")
        await until(lambda: fleet.is_finished(1), what="the end of the crawl")
        await assert_all_trouble_was_met(fleet, hostile)
        with_sessions = await crawl_with_sessions(fleet, hostile)
        with_webhook = await deliver_in_vain(fleet, hostile)
        said = {
            "asked": asked.stdout + asked.stderr,
            "asked with sessions": with_sessions,
            "asked for a webhook": with_webhook,
            "command lines": command_lines(fleet),
        }
        said["metrics"] = "".join(fetch(port, "/metrics") for port in (metrics, metrics + 1))
        said |= flower_pages(flower)
        said |= {command: everything_said(fleet, command) for command in COMMANDS}
        said["database"] = await whole_database(fleet)
        said["redis"] = whole_redis(private_redis)
    said |= whole_files(tmp_path)
    said["debug"] = debug_texts(tmp_path, hostile, settings)
    assert_every_place_was_searched(said)
    cores = (*CORES, *hostile.signs)
    assert {(place, core) for place, text in said.items() for core in cores if core in text} == set()


async def assert_all_trouble_was_met(fleet: Fleet, hostile: Hostile) -> None:
    """The run was no walk in the park, else it proves nothing."""
    assert hostile.tokens == {TOKEN, SPENT}
    assert hostile.proxy_logins == {f"{PROXY}-user:{PROXY}"}
    assert await fleet.verdicts(1) == {"complete": 2, "failed": len(SHOPS) - 2}
    assert set(TROUBLES) <= (await fleet.calls()).keys()
    assert len(await fleet.stored()) == 2 * ROWS


async def crawl_with_sessions(fleet: Fleet, hostile: Hostile) -> str:
    """A shop whose session is served and one whose session is refused; returns what the command said."""
    file = fleet.folder / "top.csv"
    file.write_text(f"shop,session\nserved,{SESSION}\ndropped,{DROPPED}\n")
    asked = fleet.run("--debug", "crawl", str(file), "--source", "top", "--no-follow", "--json")
    assert asked.returncode == 0, asked.stderr
    file.unlink()

    async def waits() -> bool:
        rows = await fleet.read(sa.select(crawl.c.state).where(crawl.c.id == 2))
        return [row.state for row in rows] == ["waiting"]

    await until(waits, what="a crawl that waits for one session")
    assert await fleet.verdicts(2) == {"complete": 1, None: 1}
    assert hostile.sessions == {SESSION, DROPPED} and len(hostile.signs) >= 2
    return asked.stdout + asked.stderr


async def deliver_in_vain(fleet: Fleet, hostile: Hostile) -> str:
    """A webhook whose receiver gives its secret back; returns what the commands said."""
    added = fleet.run("--debug", "webhook", "add", f"{hostile.url}/webhook", "--allow-http", "--secret", WEBHOOK)
    assert added.returncode == 0, added.stderr
    tested = fleet.run("--debug", "webhook", "test", "1")
    assert tested.returncode == 2 and hostile.deliveries == 1, tested.stderr
    async with engine_for(fleet.database_url) as engine:
        await keep(engine, Change(1, "1", "gone", datetime.now(UTC), 1))

    async def failed() -> bool:
        return bool(await fleet.read(sa.select(subscription.c.id).where(subscription.c.failures > 0)))

    await until(failed, what="a delivery in vain")
    assert hostile.deliveries > 1
    return added.stdout + added.stderr + tested.stdout + tested.stderr


def assert_every_place_was_searched(said: Mapping[str, str]) -> None:
    """Every place had something to search in."""
    for place, part in {
        "asked": "crawl_id",
        "asked with sessions": "crawl_id",
        "asked for a webhook": "HTTP 500",
        "webhook list": "HTTP 500",
        "webhook list --json": "HTTP 500",
        "changes": "gone",
        "changes --format csv": "gone",
        "session list": "session-expired",
        "session list --json": "session-expired",
        "command lines": "worker.app",
        "metrics": "shopcrawl_calls_total",
        "database": "no balance",
        "redis": "_kombu",
        "debug": "Traceback",
        "/api/tasks": "crawl_page",
        "/workers": "worker@",
        "/broker": "pages",
        "export items": "surprise",
        "status": "needs authorisation",
        "status 1": "oversize",
        "doctor": "PostgreSQL",
    }.items():
        assert part in said[place], (place, said[place][:2_000])
    assert "shopcrawl_limit" in said["metrics"] and "shopcrawl_call_seconds" in said["metrics"]
    for name, part in {"worker.log": "worker ready", "appendonly.aof": "crawl_page"}.items():
        assert any(place.endswith(name) and part in text for place, text in said.items()), name


def whole_files(folder: Path) -> dict[str, str]:
    """Every file below a folder: logs, Redis' append-only file, whatever else was left there."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): path.read_bytes().decode(errors="replace") for path in files}


def command_lines(fleet: Fleet) -> str:
    """What `ps` shows of our processes and their children."""
    started = [psutil.Process(process.pid) for process in fleet._processes.values()]
    ours = [process for first in started for process in (first, *first.children(recursive=True))]
    return "\n".join(" ".join(process.cmdline()) for process in ours)


def everything_said(fleet: Fleet, command: str) -> str:
    """Both outputs of a command that succeeds."""
    done = fleet.run(*command.split())
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout + done.stderr


def fetch(port: int, path: str) -> str:
    """A page, with Flower's login; an empty text as long as nobody answers."""
    login = base64.b64encode(f"operator:{FLOWER}".encode()).decode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Authorization": f"Basic {login}"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            head, body = answer.headers.as_string(), answer.read().decode()
            return f"{head}{body}"
    except OSError:
        return ""


def flower_pages(port: int) -> dict[str, str]:
    """Every page and answer of Flower's that tells of workers, tasks and the broker."""
    tasks, workers = json_of(fetch(port, "/api/tasks")), json_of(fetch(port, "/api/workers?refresh=1"))
    paths = ["/", "/workers", "/tasks", "/broker", "/metrics", "/api/workers", "/api/tasks", "/api/queues/length"]
    paths += ["/api/task/types", *(f"/worker/{quote(name)}" for name in workers)]
    for task in list(tasks)[:30]:
        paths += [f"/task/{task}", f"/api/task/info/{task}"]
    return {path: fetch(port, path) for path in paths}


def json_of(answer: str) -> dict[str, Any]:
    return dict(json.loads(answer.partition("\n\n")[2] or "{}"))


async def whole_database(fleet: Fleet) -> str:
    """Every column of every row of every table, bodies unpacked."""
    texts = []
    for table in metadata.sorted_tables:
        for row in await fleet.read(sa.select(table)):
            cells = [zstd.decompress(cell) if name == "body" else cell for name, cell in row._mapping.items()]
            texts.append(f"{table.name}: {cells!r}")
    return "\n".join(texts)


def whole_redis(server: RedisServer) -> str:
    """Every key with its dump, and what Redis tells of its clients and slow commands."""
    once = Retry(NoBackoff(), 0)
    with redis.Redis(port=server.port, password=server.password, retry=once) as client:
        parts: list[object] = [(key, client.dump(key)) for key in client.scan_iter()]
        parts += [client.client_list(), client.slowlog_get(128)]
    return repr(parts)


def debug_texts(folder: Path, hostile: Hostile, settings: Mapping[str, Any]) -> str:
    """What --debug shows when database or Redis refuse us: tracebacks, and the texts of the drivers' exceptions."""
    unreachable = {
        "database_url": f"postgresql://postgres:{DATABASE}@127.0.0.1:1/x",
        "redis_url": f"redis://:{REDIS}@127.0.0.1:1/0",
    }
    texts = []
    for name, url in unreachable.items():
        with Fleet(folder, hostile, **{**settings, name: url}) as away:  # type: ignore[arg-type]
            done = away.run("--debug", "resume")
        assert done.returncode == 2
        texts.append(done.stdout + done.stderr)
    return "\n".join(texts)
