"""The command line keeps its contract: options, exit codes, JSON, files, and commands that share a data folder."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pyarrow.csv
import pyarrow.parquet
import pytest

from tests.e2e.crawled import HOLED, REFUSED, SOUND, Crawled, run_alone
from tests.e2e.fleet import TOKEN, Fleet, shopcrawl
from tests.e2e.here import run_here
from tests.servers import wait_until
from tests.simulator.process import SimulatorProcess

pytestmark = pytest.mark.e2e
KEYS = {"crawl", "state", "shops", "verdicts", "pages", "items", "calls", "elapsed_s"}

# What a crawl says


def test_json_prints_one_object_with_the_documented_keys_and_nothing_else(crawled: Crawled) -> None:
    lines = crawled.said.stdout.splitlines()
    assert len(lines) == 1
    told = json.loads(lines[0])
    assert told.keys() == KEYS
    assert (told["crawl"], told["state"], told["shops"]) == (1, "finished", 15)
    assert told["verdicts"] == {"complete": 13, "drifted": 0, "partial": 1, "failed": 1, "suspect": 0}
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


def test_log_of_an_embedded_crawl_is_a_file_and_no_good_page_has_a_line(crawled: Crawled) -> None:
    assert "[info" not in crawled.said.stderr
    log = (crawled.fleet.data_dir / "logs" / "worker-1.log").read_text()
    assert "worker ready" in log
    assert "crawl_page[" not in log and log.count("Z [") < 10 < crawled.simulator.calls()["total"]


def test_log_names_dead_pages_unhappy_shops_and_the_end(crawled: Crawled) -> None:
    logs = crawled.fleet.data_dir / "logs"
    lines = [line for name in ("worker-1.log", "shopcrawl.log") for line in (logs / name).read_text().splitlines()]

    def fields(event: str, shop: str = "") -> list[str]:
        return [line for line in lines if f"] {event} " in line and f"shop={shop}" in line]

    (refused,), (dead,) = fields("page refused", REFUSED), fields("page dead", HOLED)
    assert "crawl=1" in refused and "page=1" in refused and "crawl=1" in dead and "page=2" in dead
    assert "verdict=failed" in fields("shop settled", REFUSED)[0]
    assert "verdict=partial" in fields("shop settled", HOLED)[0]
    assert len(fields("shop settled")) == 2
    assert [line for line in lines if "crawl finished" in line and "shops=15" in line]


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
    assert json.loads(done.out) == {"crawl_id": 1, "resumed": False, "shops": 2, "pending": 0, "fresh": 0}
    assert json.loads(run_here(tmp_path, "status", "--json", env=env).out)["pages"]["ready"] == 2
    again = run_here(tmp_path, "crawl", "-", "--no-follow", "--json", env=env, stdin=b"shop\nb2b-1\njane\n")
    assert json.loads(again.out) == {"crawl_id": 1, "resumed": True, "shops": 2, "pending": 0, "fresh": 0}, (
        "the same crawl"
    )
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
    monkeypatch.setattr("producer.demo.SELLERS", {"seller": 450})
    monkeypatch.setattr("producer.demo.LATENCY", 0.01)
    done = run_here(tmp_path, "demo", env={"data_dir": tmp_path / "data"})
    assert (done.code, done.out) == (0, ""), done.err
    assert "✔ the store equals the simulator's truth" in done.err
    counted = re.search(r"the simulator counted ([\d,]+), the ledger ([\d,]+);", done.err)
    assert counted is not None and counted[1] == counted[2]


def test_a_crawl_over_plain_http_off_this_machine_is_warned_about_once(tmp_path: Path) -> None:
    (tmp_path / "shops.csv").write_text("jane727\n")
    variables = {**os.environ, "SHOPCRAWL_TMAPI_BASE_URL": "http://api.tmapi.top", "SHOPCRAWL_TMAPI_TOKENS": TOKEN}
    command = shopcrawl("crawl", "shops.csv", "--no-follow")
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.count("plain http to api.tmapi.top") == 1
