"""A source that another package brings is crawled, planned, checked and held like our own, with nothing of ours edited.

The package is a folder on the import path with a module and its entry points, as an installer leaves it.
"""

import json
import os
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.e2e.fleet import ROOT, shopcrawl

pytestmark = pytest.mark.e2e

KEY, SESSION = "canary-shelf-key", "canary-shelf-session"
ROWS = 45
ENTRY_POINTS = """[shopcrawl.sources]
shelf = shelf_source:ShelfSource
timed-shelf = shelf_source:TimedShelfSource
"""
START = datetime(2026, 1, 1, tzinfo=UTC)
SHOWN = 20


class Shelf(ThreadingHTTPServer):
    """Every shop has the same rows, each modified a minute after the one before; it counts calls by status."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.calls: Counter[int] = Counter()
        self.sessions: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answer(BaseHTTPRequestHandler):
    server: Shelf

    def do_GET(self) -> None:
        asked = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        status, answer = self._answer(asked)
        self.server.calls[status] += 1
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _answer(self, asked: dict[str, str]) -> tuple[int, object]:
        if self.headers["Authorization"] != f"Bearer {KEY}":
            return 401, None
        if asked["shop"] == "gone":
            return 410, None
        page, size, rows = int(asked["page"]), int(asked["size"]), list(range(ROWS))
        if "order_by" in asked:
            if asked.get("session") not in self.server.sessions:
                return 419, None
            if page * size > SHOWN:
                return 400, None
            start, end = asked.get("start_modified", ""), asked["end_modified"]
            rows = [row for row in rows if start <= (START + timedelta(minutes=row)).isoformat() <= end]
            rows.sort(reverse=asked["order_by"] == "modified:desc")
        shown = [{"id": row, "title": f"item {row}", "price": "1.50"} for row in rows[(page - 1) * size : page * size]]
        return 200, {"total": len(rows), "items": shown}

    def log_message(self, format: str, *arguments: object) -> None:
        """Tests have no use for a log of requests."""


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    with Shelf() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder as an installer leaves it."""
    folder = tmp_path / "site"
    metadata = folder / "shelf_source-1.0.dist-info"
    metadata.mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "shelf_source.py", folder)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: shelf-source\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    return folder


class Command:
    """Runs `shopcrawl` in embedded mode with the package at hand and no setting but a data folder."""

    def __init__(self, folder: Path, package: Path, shelf: Shelf) -> None:
        self.folder = folder
        self._env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(package), "SHOPCRAWL_DATA_DIR": str(folder / "data")}
        self._env |= {"SHELF_URL": shelf.url, "SHELF_KEYS": KEY, "SHOPCRAWL_ALLOW_ROOT": str(os.geteuid() == 0)}

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            shopcrawl(*arguments), env=self._env, input=stdin, capture_output=True, text=True, timeout=120, check=False
        )
        assert not any(secret in done.stdout + done.stderr for secret in (KEY, SESSION))
        return done

    def stored(self) -> Counter[str]:
        """Different items by shop."""
        exported = self.run("export", "items")
        rows = {(row["shop"], row["item_id"]) for row in map(json.loads, exported.stdout.splitlines())}
        return Counter(shop for shop, _ in rows)


@pytest.fixture
def command(tmp_path: Path, package: Path, shelf: Shelf) -> Command:
    return Command(tmp_path, package, shelf)


def test_its_pages_are_read_to_the_end_and_its_errors_lead_to_our_reactions(command: Command, shelf: Shelf) -> None:
    done = command.run("crawl", "-", "--source", "shelf", "--json", "--quiet", stdin="one\ntwo\ngone\n")
    told = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (3, "")
    assert (told["verdicts"]["complete"], told["verdicts"]["failed"]) == (2, 1)
    assert command.stored() == {"one": ROWS, "two": ROWS}
    assert told["calls"] == {"200": shelf.calls[200], "410": 1}
    offline = json.loads(command.run("plan", "-", "--source", "shelf", "--offline", "--json", stdin="one\n").stdout)
    assert (offline["items"], offline["calls"], offline["spent"]) == (ROWS, ROWS // 5 + 1, 0)
    assert (
        command.run("crawl", "-", "--source", "shelf", "--option", "colour=red", "--no-follow", stdin="one").returncode
        == 0
    )
    refused = command.run("crawl", "-", "--source", "shelf", "--sort", "sales", stdin="one")
    assert refused.returncode == 2 and "means nothing to shelf" in refused.stderr


@pytest.mark.slow
def test_its_windows_of_time_are_cut_and_its_shops_wait_for_sessions(command: Command, shelf: Shelf) -> None:
    shelf.sessions.add(SESSION)
    shops = f"shop,source,session\none,timed-shelf,{SESSION}\ntwo,timed-shelf,stale-session\n"
    done = command.run("crawl", "-", "--json", "--quiet", stdin=shops)
    told = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (3, "")
    assert (told["verdicts"]["complete"], told["needs_authorisation"]) == (1, 1)
    assert command.stored() == {"one": ROWS}
    assert shelf.calls[419] == 1 and shelf.calls[400] == 0, "no call beyond what the listing shows"
    assert command.run("session", "set", "two", "--source", "timed-shelf", stdin=SESSION).returncode == 0
    assert command.run("resume", "--quiet").returncode == 0
    assert command.stored() == {"one": ROWS, "two": ROWS}


def test_the_doctor_knows_it(command: Command, shelf: Shelf) -> None:
    done = command.run("doctor")
    for line in ("✔ shelf credential: 1, by fingerprint:", f"✔ shelf address: {shelf.url}", "✔ shelf answer: HTTP 401"):
        assert line in done.stdout, done.stdout
    assert "▲ sessions: none stored" in done.stdout
