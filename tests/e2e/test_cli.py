"""The command line keeps its contract: options, exit codes, JSON, files, and commands that share a data folder."""

import json
import re
import shutil
import signal
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pyarrow.csv
import pyarrow.parquet
import pytest
import redis

from tests.e2e.fleet import TOKEN, Fleet, shopcrawl
from tests.e2e.here import Done, run_here
from tests.servers import wait_until
from tests.simulator.process import SimulatorProcess

pytestmark = pytest.mark.e2e
KEYS = {"crawl", "state", "shops", "verdicts", "pages", "items", "calls", "elapsed_s"}
REFUSED, HOLED, SOUND = "refused01", "holed01", "sound01"


@dataclass(frozen=True)
class Crawled:
    """A finished embedded crawl: what the command said, where it is, and what it ran against."""

    said: subprocess.CompletedProcess[str]
    fleet: Fleet
    simulator: SimulatorProcess

    def here(self, *arguments: str, folder: Path | None = None, **env: object) -> Done:
        """Run a command on this data folder, or on a copy of it."""
        data_dir = folder or self.fleet.data_dir
        given = {"data_dir": data_dir, "tmapi_tokens": TOKEN, "tmapi_base_url": self.simulator.url, "retry_base": 0.05}
        return run_here(data_dir, *arguments, env=given | env)


@pytest.fixture(scope="module")
def crawled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crawled]:
    """A crawl in which one shop was refused and another has a page that cannot be had; it healed since."""
    extra = {REFUSED: 30, HOLED: 50, SOUND: 45}
    with SimulatorProcess(shops=12, seed=2, items_max=60, extra=extra, token=TOKEN) as simulator:
        simulator.script({"outcome": "422", "shop": REFUSED}, {"outcome": "500", "shop": HOLED, "pages": [2, 2]})
        with Fleet(tmp_path_factory.mktemp("crawled"), simulator) as fleet:
            said = fleet.run("crawl", str(fleet.shops_file()), "--json")
            simulator.script({"clear": True})
            yield Crawled(said, fleet, simulator)


@pytest.fixture
def copy(crawled: Crawled, tmp_path: Path) -> Path:
    """A copy of the finished crawl's data folder, to be changed."""
    return Path(shutil.copytree(crawled.fleet.data_dir, tmp_path / "copy", ignore=shutil.ignore_patterns("redis")))


def run_alone(data_dir: Path, api: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run the console script with only the settings that a first user gives."""
    env = {"SHOPCRAWL_DATA_DIR": str(data_dir), "SHOPCRAWL_TMAPI_BASE_URL": api, "SHOPCRAWL_TMAPI_TOKENS": TOKEN}
    env["PATH"] = "/usr/bin:/bin"
    return subprocess.run(
        shopcrawl(*arguments), env=env, input=stdin, capture_output=True, text=True, timeout=120, check=False
    )


# What a crawl says


def test_json_prints_one_object_with_the_documented_keys_and_nothing_else(crawled: Crawled) -> None:
    lines = crawled.said.stdout.splitlines()
    assert len(lines) == 1
    told = json.loads(lines[0])
    assert told.keys() == KEYS
    assert (told["crawl"], told["state"], told["shops"]) == (1, "finished", 15)
    assert told["verdicts"] == {"complete": 13, "drifted": 0, "partial": 1, "failed": 1}
    assert told["pages"].keys() == {"ready", "sent", "done", "dead"}
    assert (told["pages"]["ready"], told["pages"]["sent"], told["pages"]["dead"]) == (0, 0, 2)
    assert told["items"].keys() == {"seen", "unique", "new", "changed"}
    assert told["items"]["seen"] == told["items"]["unique"] == told["items"]["new"] > 0
    assert told["calls"]["422"] == 1 and told["calls"]["200"] == told["pages"]["done"]
    assert 0 < told["elapsed_s"] < 120


def test_some_shop_partial_or_failed_is_exit_code_3(crawled: Crawled) -> None:
    assert crawled.said.returncode == 3
    assert "Traceback" not in crawled.said.stderr and "Warning" not in crawled.said.stderr


def test_shop_refused_with_422_fails_with_the_servers_message_and_others_complete(crawled: Crawled) -> None:
    told = crawled.here("status")
    assert told.code == 0
    line = next(line for line in told.out.splitlines() if REFUSED in line)
    assert "422" in line or "param" in line.lower(), line
    assert HOLED in told.out and SOUND not in told.out


def test_status_json_is_the_object_that_the_crawl_printed(crawled: Crawled) -> None:
    told = crawled.here("status", "--json")
    assert (told.code, told.out, told.err) == (0, crawled.said.stdout, "")
    assert crawled.here("status", "1", "--json").out == told.out


def test_watching_a_finished_crawl_shows_it_and_ends(crawled: Crawled) -> None:
    told = crawled.here("status", "--watch")
    assert told.code == 0
    assert "crawl 1" in told.err and REFUSED in told.out


def test_crawls_lists_every_crawl(crawled: Crawled) -> None:
    told = crawled.here("crawls")
    assert (told.code, told.err) == (0, "")
    assert "finished" in told.out and "15" in told.out


def test_log_of_an_embedded_crawl_is_a_file_and_no_page_has_a_line(crawled: Crawled) -> None:
    assert "[info" not in crawled.said.stderr
    log = (crawled.fleet.data_dir / "logs" / "worker-1.log").read_text()
    assert "worker ready" in log
    assert "crawl_page[" not in log and log.count("Z [") < 10 < crawled.simulator.calls()["total"]


def test_settings_are_read_from_a_dotenv_file(crawled: Crawled, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"SHOPCRAWL_DATA_DIR={crawled.fleet.data_dir}\n")
    told = run_here(tmp_path, "status", "--json")
    assert (told.code, told.out) == (0, crawled.said.stdout)


# Files out, old bodies away


def test_export_writes_one_row_per_item_in_each_format(crawled: Crawled, tmp_path: Path) -> None:
    with sqlite3.connect(crawled.fleet.data_dir / "shopcrawl.db") as connection:
        query = "SELECT key, item_id FROM item JOIN shop ON shop.id = item.shop_id"
        keys = set(connection.execute(query).fetchall())
    connection.close()
    lines = crawled.here("export", "items").out.splitlines()
    rows: dict[str, list[dict[str, Any]]] = {"jsonl": [json.loads(line) for line in lines]}
    for kind in ("csv", "parquet"):
        done = crawled.here("export", "items", "--format", kind, "-o", str(tmp_path / kind))
        assert (done.code, done.out) == (0, "") and done.err.startswith(f"{len(keys)} items written")
    texts = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(("item_id", "price"), pyarrow.string()))
    rows["csv"] = pyarrow.csv.read_csv(tmp_path / "csv", convert_options=texts).to_pylist()
    rows["parquet"] = pyarrow.parquet.read_table(tmp_path / "parquet").to_pylist()
    for found in rows.values():
        assert {(row["shop"], row["item_id"]) for row in found} == keys and len(found) == len(keys)
        assert found[0].keys() >= {"source", "shop", "item_id", "title", "price", "first_seen", "last_seen"}
    assert all(isinstance(row["price"], str | None) for row in rows["jsonl"])


def test_export_of_one_shop_and_of_some_columns(crawled: Crawled) -> None:
    done = crawled.here("export", "items", "--shop", SOUND, "--columns", "item_id,price")
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 0 and len(rows) == 45
    assert all(row.keys() == {"item_id", "price"} for row in rows)


def test_reader_that_closes_the_pipe_early_gets_no_complaint(crawled: Crawled) -> None:
    command = " ".join([*shopcrawl("export", "items"), "| head -n 1"])
    env = {"SHOPCRAWL_DATA_DIR": str(crawled.fleet.data_dir), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, shell=True, env=env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_archive_prune_drops_old_bodies_only(crawled: Crawled, copy: Path) -> None:
    bodies, items = rows_of(copy, "page_body"), rows_of(copy, "item")
    assert crawled.here("archive", "prune", "--older-than", "1h", folder=copy).out == "0 page bodies dropped\n"
    done = crawled.here("archive", "prune", "--older-than", "0s", folder=copy)
    assert (done.code, done.out) == (0, f"{bodies} page bodies dropped\n") and bodies > 15
    assert (rows_of(copy, "page_body"), rows_of(copy, "item")) == (0, items)


def rows_of(folder: Path, table: str) -> int:
    """How many rows a table has."""
    with sqlite3.connect(folder / "shopcrawl.db") as connection:
        count = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    connection.close()
    return int(count)


def test_db_upgrade_makes_a_database_and_changes_none_that_is_new(tmp_path: Path) -> None:
    first = run_here(tmp_path, "db", "upgrade", env={"data_dir": tmp_path})
    assert (first.code, first.err) == (0, "") and "schema version 0" in first.out
    assert run_here(tmp_path, "db", "upgrade", env={"data_dir": tmp_path}).out == first.out


# Doctor


def test_doctor_finds_a_working_set_up_sound(crawled: Crawled) -> None:
    done = crawled.here("doctor")
    assert (done.code, done.err) == (0, "")
    assert "✘" not in done.out
    for name in ("database", "schema", "redis", "clock", "token", "api address", "api answer", "data folder"):
        assert f"✔ {name}:" in done.out or f"▲ {name}:" in done.out
    assert TOKEN not in done.out


@pytest.mark.parametrize(
    ("changed", "cure"),
    [
        ({"tmapi_tokens": ""}, "set SHOPCRAWL_TMAPI_TOKENS"),
        ({"tmapi_base_url": "ftp://api"}, "set SHOPCRAWL_TMAPI_BASE_URL"),
        ({"tmapi_base_url": "http://127.0.0.1:1"}, "check the network"),
        ({"redis_url": "redis://:canary-r@127.0.0.1:1/0"}, "start Redis, or correct SHOPCRAWL_REDIS_URL"),
        ({"redis_url": "http://x"}, "SHOPCRAWL_REDIS_URL"),
        ({"database_url": "postgresql://u:canary-d@127.0.0.1:1/d"}, "start the database, or correct"),
        ({"database_url": "mysql://x"}, "SHOPCRAWL_DATABASE_URL"),
        ({"data_dir": "/proc/no"}, "set SHOPCRAWL_DATA_DIR"),
    ],
)
def test_doctor_names_the_cure_of_what_is_bad(crawled: Crawled, changed: dict[str, Any], cure: str) -> None:
    done = crawled.here("doctor", **changed)
    assert (done.code, done.err) == (2, "")
    bad = [line for line in done.out.splitlines() if line.startswith("✘")]
    assert len(bad) == 1 and cure in bad[0]
    assert "canary" not in done.out


def test_doctor_tells_of_an_eviction_policy_that_loses_pages(crawled: Crawled, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        done = crawled.here("doctor", redis_url=redis_url)
        client.config_set("maxmemory-policy", "noeviction")
    assert done.code == 2 and "maxmemory-policy noeviction" in done.out
    assert crawled.here("doctor", redis_url=redis_url).code == 0


def test_doctor_sends_an_old_schema_to_db_upgrade(crawled: Crawled, redis_url: str, copy: Path) -> None:
    with sqlite3.connect(copy / "shopcrawl.db") as connection:
        connection.execute("DELETE FROM alembic_version")
    connection.close()
    done = crawled.here("doctor", folder=copy, redis_url=redis_url, database_url=f"sqlite:///{copy}/shopcrawl.db")
    assert done.code == 2 and "run `shopcrawl db upgrade`" in done.out


# Re-crawls


def chosen(crawled: Crawled, copy: Path, *arguments: str) -> set[str]:
    """The shops that a re-crawl with these arguments is asked for."""
    done = crawled.here("recrawl", *arguments, "--no-follow", "--json", folder=copy)
    assert done.code == 0, done.err
    crawl_id = json.loads(done.out)["crawl_id"]
    with sqlite3.connect(copy / "shopcrawl.db") as connection:
        query = "SELECT key, priority FROM shop JOIN shop_crawl s ON s.shop_id = shop.id WHERE s.crawl_id = ?"
        rows = connection.execute(query, (crawl_id,)).fetchall()
    connection.close()
    assert {priority for _, priority in rows} <= {0}, "ahead of all other work"
    return {key for key, _ in rows}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--failed", {REFUSED}),
        ("--verdict partial", {HOLED}),
        ("--verdict partial --failed", {HOLED, REFUSED}),
        (f"{SOUND} {HOLED} {SOUND}", {SOUND, HOLED}),
        (f"{SOUND} never-seen", {SOUND, "never-seen"}),
    ],
)
def test_recrawl_selects(crawled: Crawled, copy: Path, arguments: str, expected: set[str]) -> None:
    assert chosen(crawled, copy, *arguments.split()) == expected


def test_recrawl_by_age_and_of_all(crawled: Crawled, copy: Path) -> None:
    with sqlite3.connect(copy / "shopcrawl.db") as connection:
        old = "UPDATE shop_crawl SET settled_at = '2020-01-01 00:00:00.000001' WHERE shop_id ="
        connection.execute(f"{old} (SELECT id FROM shop WHERE key = '{SOUND}')")
    connection.close()
    assert chosen(crawled, copy, "--older-than", "24h") == {SOUND}
    everything = chosen(crawled, copy, "--all")
    assert len(everything) == 14 and SOUND not in everything, "its re-crawl is pending already"
    again = crawled.here("recrawl", "--all", "--no-follow", folder=copy)
    assert again.code == 0 and "waiting for a re-crawl already" in again.err


def test_recrawl_of_a_healed_shop_is_exit_code_0_and_takes_the_data_folder_back(crawled: Crawled, copy: Path) -> None:
    done = run_alone(copy, crawled.simulator.url, "recrawl", REFUSED, HOLED, "--json", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["verdicts"] == {"complete": 2, "drifted": 0, "partial": 0, "failed": 0}
    assert told["items"]["new"] == 30 + 20, "all of one shop, and the page that was missing of the other"


# Options


class Recorder(ThreadingHTTPServer):
    """An API that has five pages of whatever size is asked for, and remembers what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Recording)
        self.asked: list[dict[str, str]] = []

    def __enter__(self) -> "Recorder":
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Recording(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        assert isinstance(self.server, Recorder)
        query = dict(parse_qsl(urlsplit(self.path).query))
        self.server.asked.append(query)
        number, size = int(query["page"]), int(query["page_size"])
        rows = range((number - 1) * size, min(number, 5) * size)
        items = [{"item_id": str(row), "title": f"item {row}", "price": "1.00"} for row in rows]
        data = {"total_count": str(5 * size), "page": number, "page_size": size, "items": items}
        body = json.dumps({"code": 200, "msg": "success", "data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def test_every_option_has_its_effect_and_a_shops_own_options_win(tmp_path: Path) -> None:
    rows = "shop,sort,page_size,max_pages,shop_cat_id\nplain,,,,\nspecial,sales,10,3,77\n"
    options = "--source tmapi --sort price_up --page-size 15 --max-pages 2 --shop-cat-id 5"
    options += " --price-start 1.5 --price-end 20 --priority 3 --workers 1 --concurrency 7"
    with Recorder() as api:
        data_dir = tmp_path / "data"
        url = f"http://127.0.0.1:{api.server_port}"
        done = run_alone(data_dir, url, "crawl", "-", "--quiet", *options.split(), stdin=rows)
    assert done.stderr == ""
    common = {"apiToken": TOKEN, "price_start": "1.5", "price_end": "20"}
    plain = common | {"member_id": "plain", "sort": "price_up", "page_size": "15", "shop_cat_id": "5"}
    special = common | {"member_id": "special", "sort": "sales", "page_size": "10", "shop_cat_id": "77"}
    expected = [plain | {"page": str(number)} for number in (1, 2)]
    expected += [special | {"page": str(number)} for number in (1, 2, 3)]
    assert sorted(api.asked, key=lambda query: (query["member_id"], query["page"])) == expected
    assert "concurrency=7" in (data_dir / "logs" / "worker-1.log").read_text()
    with sqlite3.connect(data_dir / "shopcrawl.db") as connection:
        assert connection.execute("SELECT DISTINCT priority FROM page").fetchall() == [(3,)]
    connection.close()


def test_no_follow_only_asks_and_headerless_input_names_one_shop_per_line(tmp_path: Path) -> None:
    env = {"data_dir": tmp_path, "tmapi_tokens": TOKEN}
    done = run_here(
        tmp_path, "crawl", "-", "--no-follow", "--json", env=env, stdin=b"\xef\xbb\xbfjane\r\n\r\nb2b-1\r\n"
    )
    assert json.loads(done.out) == {"crawl_id": 1, "resumed": False, "shops": 2, "pending": 0}
    assert json.loads(run_here(tmp_path, "status", "--json", env=env).out)["pages"]["ready"] == 2
    again = run_here(tmp_path, "crawl", "-", "--no-follow", "--json", env=env, stdin=b"shop\nb2b-1\njane\n")
    assert json.loads(again.out) == {"crawl_id": 1, "resumed": True, "shops": 2, "pending": 0}, "the same crawl"
    assert not (tmp_path / "redis").exists()


# Several commands


@pytest.fixture
def slow() -> Iterator[SimulatorProcess]:
    """Shops that take a few seconds."""
    with SimulatorProcess(shops=10, seed=4, items_max=50, latency=0.2, token=TOKEN) as running:
        yield running


async def test_interrupted_crawl_is_exit_code_130_and_the_same_command_continues_it(
    tmp_path: Path, slow: SimulatorProcess
) -> None:
    with Fleet(tmp_path, slow, concurrency=2) as fleet:
        command = ["crawl", str(fleet.shops_file()), "--json"]
        process = fleet.background("crawl", *command)
        await fleet.until_done(3)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert "shopcrawl: interrupted; nothing is lost" in fleet.log("crawl")
        assert "Traceback" not in fleet.log("crawl")
        done = fleet.run(*command)
        assert done.returncode == 0, done.stderr
        assert "crawl 1 continues" in done.stderr
        await fleet.assert_complete(1)
        assert fleet.repeated == 0


async def test_up_works_on_what_other_processes_of_the_folder_ask_for(tmp_path: Path, slow: SimulatorProcess) -> None:
    with Fleet(tmp_path, slow) as fleet:
        up = fleet.background("up", "up")
        wait_until(lambda: "up: 1 workers" in fleet.log("up"), what="the host")
        crawl_id = fleet.submit()
        first = slow.control("GET", "shops")[0]
        followed = fleet.run("recrawl", first, "--json")
        assert followed.returncode == 0, followed.stderr
        assert json.loads(followed.stdout)["shops"] == 1
        assert "already uses the data folder" in followed.stderr and "it does this work too" in followed.stderr
        await fleet.until_finished(crawl_id)
        await fleet.assert_complete(crawl_id)
        up.send_signal(signal.SIGTERM)
        assert up.wait(60) == 130
        assert "Traceback" not in fleet.log("up")


def test_small_demo_finds_its_store_equal_to_the_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("producer.demo.SHOPS", 12)
    monkeypatch.setattr("producer.demo.LATENCY", 0.01)
    done = run_here(tmp_path, "demo", env={"data_dir": tmp_path / "data"})
    assert (done.code, done.out) == (0, ""), done.err
    assert "✔ the store equals the simulator's truth" in done.err
    counted = re.search(r"the simulator counted ([\d,]+), the ledger ([\d,]+);", done.err)
    assert counted is not None and counted[1] == counted[2]
